"""Transcoders of a language model: its own neurons, and the transcoder that a name means."""
