"""How sharply the loss is curved at a model: the largest eigenvalue of its Hessian, on retain and on forget set.

The loss is the mean over examples of an example's mean cross-entropy, in evaluation mode, as `loss` measures it. Its
Hessian is taken in all trainable weights; Lanczos computes the largest eigenvalue from products with vectors. Gradient
descent with step size eta leaves a minimum if this value exceeds 2 / eta.

Unlike `distance`, it needs only the model, not the original. Like `distance`, it is no property of the function:
rescaled ReLU units (`symmetry`) change the curvature but not the function (1703.04933); permuted units change neither.

Cost: per product about two gradients of each example, with at most `limit` products on each of the two sets.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from expunge.base.part import Count, Positive
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.device import computing
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores
from expunge.numerics.lanczos import lanczos
from expunge.numerics.linops import differentiable, hessian
from expunge.train.evaluation import batch_loss, losses, sample
from expunge.train.loop import in_order


@dataclass(frozen=True)
class Curvature(Audit):
    """Largest eigenvalue of the loss's Hessian; predicts, does not judge."""

    after_attack: ClassVar[bool] = False

    retain: Count = 500
    """Retain examples in the mean loss, a fixed random part."""
    limit: Count = 40
    """Largest number of Hessian-vector products on each set; if they are too few, the value is a little too small."""
    tolerance: Positive = 1e-2
    """Largest error, relative to the largest absolute eigenvalue found."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """One number for each set, in nats per squared weight.

        Raises:
            RunError: A module of the model has no second derivative, or has weight norm, whose second derivative is
                wrong in PyTorch; names it. Or the products are random, or not those of a symmetric matrix.
        """
        problem = case.problem
        splits = {"retain": sample(problem.retain, self.retain, "curvature"), "forget": problem.unexposed}
        whole = np.zeros(1, dtype=np.int64)
        return [
            Scores(
                "curvature",
                split,
                np.array([self._top(model, problem, ids, seed)]),
                whole,
                "predictor",
                "nats per squared weight",
                "reference",
                reduce="single",
            )
            for split, ids in splits.items()
        ]

    def _top(self, model: nn.Module, problem: Problem, ids: Tensor, seed: int) -> float:
        # The loss of a diverged model has no derivatives; the result is NaN.
        if not np.isfinite(losses(model, problem, ids)).all():
            return float("nan")
        clone = copy.deepcopy(model).eval()
        batches = list(in_order(problem.data, ids))
        product = hessian(batch_loss(problem), clone, differentiable(clone), batches)
        # The same start for every model, so that differences come from the models alone.
        generator = generator_of(seed, "start")
        # Second derivatives need more digits than bfloat16 has.
        with computing("float32"):
            pairs = lanczos(product, product.like, generator, tolerance=self.tolerance, limit=self.limit)
        return float(pairs.values[0])
