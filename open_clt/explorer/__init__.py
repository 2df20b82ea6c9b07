"""The explorer: a web application on this computer, in which a person asks why a model said what it said.

``session.py`` holds what a person has done, ``actions.py`` changes it, ``worker.py`` runs the model, ``workspace.py``
computes what pages show, and ``app.py`` serves the pages. ``open-clt explore`` starts it.
"""
