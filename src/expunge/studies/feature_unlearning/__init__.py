"""The study of Dichotomy of Feature Learning and Unlearning (2602.07378)."""
