"""Measurements of a model, one a file."""
