"""What this machine does: the input, the training step and its profile."""
