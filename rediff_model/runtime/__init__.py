"""How a pass runs: attention layouts, caches, threads, compiled and recorded steps."""
