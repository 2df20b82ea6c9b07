"""The flags and YAML files of ``open-clt train``, and the training run that they describe."""
