"""Studies: claims as data, one measurement per seed, and a decision by rules."""
