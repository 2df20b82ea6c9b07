"""Circuits: supernodes with names, claims that the names make, and tests of the claims on fresh prompts."""
