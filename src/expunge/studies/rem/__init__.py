"""The study of Redirection for Erasing Memory (2505.17730)."""
