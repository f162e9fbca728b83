"""TFDS builders of embedded datasets."""
