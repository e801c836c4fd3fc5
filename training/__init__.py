"""Training of refining diffusion captioners: Stage I, Stage II, data and evaluation."""
