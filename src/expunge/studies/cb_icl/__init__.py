"""The study of concept-based in-context learning (2509.20882)."""
