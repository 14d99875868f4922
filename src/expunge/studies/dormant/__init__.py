"""The study of From Dormant to Deleted (2505.22310)."""
