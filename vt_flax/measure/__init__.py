"""Rates of the input and of the training step, measured on this machine."""
