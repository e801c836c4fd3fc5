"""Kernels of the refining step: plain-torch meanings and the Triton versions beside them."""

__version__ = "0.1.0"
