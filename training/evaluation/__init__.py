"""Scores of captions by measures and file formats that others published."""
