"""The autoregressive twin of the embedded model: same shape and data, one token after the other."""
