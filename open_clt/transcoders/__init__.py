"""Transcoders: from the activations that a layer reads to features, and from features to the activations it writes.

This package computes with tensors only and does not use a language model.
"""
