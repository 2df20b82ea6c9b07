"""Data to train and measure on: texts, contexts of tokens, and the activations that are harvested from them."""
