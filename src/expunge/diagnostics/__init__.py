"""Diagnostics: what can be said of a problem before anything is unlearned, one a file."""
