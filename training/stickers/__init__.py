"""Sticker scenes: graph, pictures, grammar and the exact evaluator."""
