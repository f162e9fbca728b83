"""The paper's parts, one concept a file."""
