"""The training loop: steps, state, metrics and the run's folder."""
