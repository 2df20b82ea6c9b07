"""Training of transcoders with Lightning: ``run.py`` is the way in, and its docstring describes a training run."""

from open_clt.progress import without_widget_advice

without_widget_advice()  # before any module of this room imports Lightning
