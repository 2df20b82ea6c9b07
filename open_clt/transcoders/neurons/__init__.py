"""Neurons: the MLP neurons of a language model as the features of a transcoder, which needs no training."""
