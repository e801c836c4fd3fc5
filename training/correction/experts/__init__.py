"""Experts: what a draft's wrong segments should have been."""
