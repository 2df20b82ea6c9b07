"""One step of training: losses, the module that adds them up, and the optimizer."""
