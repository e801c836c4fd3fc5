"""The masked-diffusion loss: noise, replacements and weights."""
