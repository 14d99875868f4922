"""Audits measure a model. One audit per file."""
