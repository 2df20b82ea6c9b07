"""Training of transcoders, on Lightning: losses, one module, one data module, and ``train_transcoder``."""
