"""Training of transcoders with Lightning: ``run.py`` is the way in, and its docstring describes a training run."""
