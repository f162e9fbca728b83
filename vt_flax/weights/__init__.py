"""Weights that others have trained: their files, their names, and where they go."""
