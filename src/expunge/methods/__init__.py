"""Unlearning methods, one file each; retraining is one of them."""
