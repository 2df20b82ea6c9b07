"""Alignment of graphs: which positions, and which features, of several graphs correspond to one another."""
