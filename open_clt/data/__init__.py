"""Training and evaluation data: texts, contexts of tokens packed from them, and activations harvested on contexts."""
