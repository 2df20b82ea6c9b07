"""Interventions on features: what they are, and what they do to a language model."""
