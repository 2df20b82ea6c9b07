"""Language models: loading, running with hooks, and the linear path of a model on one prompt."""
