"""Tensors in, tensors out: operators, decompositions and estimators that know nothing of models or tasks."""
