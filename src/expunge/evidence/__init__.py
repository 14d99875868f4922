"""Estimates, their uncertainty, and the verdicts that follow. No torch: old results can be recomputed anywhere."""
