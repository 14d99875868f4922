"""The study of the decoupled straight-through estimator (2410.13331)."""
