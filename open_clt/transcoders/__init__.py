"""Transcoders: tensors in, tensors out; this room knows no language model."""
