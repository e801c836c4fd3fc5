"""The refining masked-diffusion captioner: configuration, modules, samplers, checkpoints."""
