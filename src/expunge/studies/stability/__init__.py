"""The study of Why Some Models Resist Unlearning (2602.02986)."""
