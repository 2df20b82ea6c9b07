"""Sparse features of a batch, and the products that are computed with them."""
