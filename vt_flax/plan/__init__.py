"""Cost and speed of a training step, from its compiled program."""
