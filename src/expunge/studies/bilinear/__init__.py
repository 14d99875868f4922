"""The study of structural disentanglement in bilinear MLPs (2602.05635)."""
