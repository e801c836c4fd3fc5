"""Training on conversations about pictures, for checkpoints of the official layout."""
