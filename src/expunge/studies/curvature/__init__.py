"""The study of memorisation in the curvature of the loss (2510.24256)."""
