"""Sparse encoding of hidden states: the encoders of a transcoder without its decoders."""
