"""Formats of picture files: their names, and each file reduced to its first picture."""
