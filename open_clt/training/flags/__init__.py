"""Flags and YAML files of ``open-clt train``: how they are read, and the training run that they describe."""
