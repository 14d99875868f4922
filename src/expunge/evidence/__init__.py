"""Estimates, their uncertainty, and the verdicts drawn from them. No torch: old results can be recomputed anywhere."""
