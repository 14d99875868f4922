"""Unlearning methods, one a file; retraining is a method like any other."""
