"""A language model whose MLPs are a transcoder: run it, let it write, and compare it with the original."""
