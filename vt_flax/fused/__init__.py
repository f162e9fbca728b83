"""Formulations that exist to be fast on accelerators, and the choice among them."""
