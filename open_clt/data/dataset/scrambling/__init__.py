"""Scrambling: a dataset whose tokens are in random order over the whole dataset, made with bounded memory."""
