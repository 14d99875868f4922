"""Diagnostics: what a problem shows before anything is unlearned. One diagnostic per file."""
