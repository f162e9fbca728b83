"""The systems that the paper compares with, one a file."""
