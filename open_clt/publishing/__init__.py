"""Publishing: a transcoder is pushed to the Hugging Face hub, with a model card."""
