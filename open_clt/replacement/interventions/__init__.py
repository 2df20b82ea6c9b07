"""Interventions on features: their description, and forward passes of a language model with them."""
