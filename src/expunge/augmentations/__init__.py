"""Augmentations, random changes of inputs in training but not in evaluation; one file each."""
