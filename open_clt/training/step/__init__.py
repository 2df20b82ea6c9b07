"""One training step: the losses, the Lightning module that adds them up, and the optimizer."""
