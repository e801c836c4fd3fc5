"""Sampling: settings, the reference sampler, the batched sampler and their outputs."""
