"""Replacement models: language models whose MLP outputs come from a transcoder; their text, and their accuracy."""
