"""Transcoders: tensors in, tensors out. This room knows no language model, no loss and no trainer."""
