"""Tensors in, tensors out: operators, decompositions and estimators, independent of models and tasks."""
