"""The engine: admission, batching and stepping, without any web framework."""
