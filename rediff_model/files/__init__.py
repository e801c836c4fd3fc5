"""Files shared by server and training: atomic writes, tar archives, pictures."""
