"""Plain ResNets that others would write, to measure training steps against."""
