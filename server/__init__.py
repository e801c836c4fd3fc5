"""The HTTP server and command line around the captioner."""

__version__ = "0.1.0"
