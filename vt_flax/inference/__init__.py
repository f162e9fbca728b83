"""Trained networks: predictions, exported programs and token statistics."""
