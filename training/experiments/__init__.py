"""The paper's experiments on the embedded model: branches of training, a table and a plot each."""
