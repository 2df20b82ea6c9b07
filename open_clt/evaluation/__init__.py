"""Evaluation: a transcoder or a graph against held-out text and interventions."""
