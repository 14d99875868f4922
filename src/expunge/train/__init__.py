"""The training loop, the optimisers by name, the recipe that a spec describes, and C-scores."""
