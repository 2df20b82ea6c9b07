"""The language model: where it comes from, what passes through it, and its linear path on one prompt."""
