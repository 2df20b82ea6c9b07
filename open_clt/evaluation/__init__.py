"""Evaluation: measuring a transcoder on held-out text, and a graph against interventions."""
