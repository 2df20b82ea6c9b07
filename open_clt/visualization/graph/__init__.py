"""The picture of an attribution graph."""
