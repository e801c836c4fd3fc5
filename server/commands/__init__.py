"""The commands of `rediff` that are not the server: data, training, evaluation, tools."""
