"""The study of Analyzing Sharpness along GD Trajectory (2207.12678)."""
