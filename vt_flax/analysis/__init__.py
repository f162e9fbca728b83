"""Counts, the paper's tables as data, and pictures."""
