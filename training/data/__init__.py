"""Conversation data: rows, pictures, mixtures, and samples ready for the model."""
