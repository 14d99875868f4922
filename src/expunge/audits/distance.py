"""How far the weights moved: L2 distance between a model and the original (2505.22310).

The distance covers all parameters, each once even if it is tied; running statistics are left out. A model of another
shape has no distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.evidence.scores import Scores
from expunge.numerics.real import as_real


@dataclass(frozen=True)
class Distance(Audit):
    """L2 distance to the original; predicts, does not judge."""

    after_attack: ClassVar[bool] = False

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """One number, in units of the weights."""
        value, whole = np.array([l2(model, case.original)]), np.zeros(1, dtype=np.int64)
        return [Scores("l2_distance", "weights", value, whole, "predictor", "weight", "reference", reduce="single")]


def l2(a: nn.Module, b: nn.Module) -> float:
    """Square root of the summed squared differences of all parameters, accumulated in float64.

    Raises:
        SpecError: The models' parameters differ in names or shapes.
    """
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        finding = "the two models have different parameters"
        raise SpecError(finding, where=f"{type(a).__name__}", allowed="equal names and shapes")
    with torch.no_grad():
        pairs = [(as_real(ours[n]).double(), as_real(theirs[n]).double()) for n in ours]
        squares = [float((our - their).square().sum()) for our, their in pairs]
    return math.sqrt(math.fsum(squares))
