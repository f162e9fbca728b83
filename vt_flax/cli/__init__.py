"""The commands, one module each, and their shared arguments and tables."""
