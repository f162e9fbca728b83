"""Trained networks in use: what they say of images, and where their tokens look."""
