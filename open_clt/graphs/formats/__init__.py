"""File formats of other programs for attribution graphs."""
