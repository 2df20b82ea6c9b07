"""Where data comes from: the language model, texts as tokens, and the activations harvested from both."""
