"""Remove what a trained neural network has learned, and show whether it is really gone."""
