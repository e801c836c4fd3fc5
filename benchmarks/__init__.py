"""Benchmarks; each prints its command, hardware and ratios."""
