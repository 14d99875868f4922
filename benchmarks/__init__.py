"""Speed as ratios: each file runs us and an opponent in turn, in one run, and prints the ratio and its spread."""
