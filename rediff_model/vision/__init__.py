"""Vision towers, tiling, and what turns a picture into rows of the prompt."""
