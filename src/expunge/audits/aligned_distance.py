"""How far the weights moved after matching hidden units: L2 distance and barrier to the original (2209.04836).

Two models that differ only in the order of their units compute the same function, but their weights are far apart.
Units are matched by weights, one hidden layer at a time: linear assignment finds the order of the layer's units that is
closest to the original, given the order of all other layers. This repeats until no layer improves. A layer before a
group norm takes only orders that keep the norm exact. Running statistics are permuted too, and do not count, as in
`distance`.

Such a search ends in a local optimum. It runs from two starts and keeps the closer result: from the given order, so the
distance is never larger than that of `distance`; and from each layer matched by its incoming weights alone, input to
output, which undoes any pure permutation. The paper visits layers in random order, from one start. Rescaled units are
not scaled back.

For plain chains of layers only; see `symmetry`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
import numpy as np
from torch import Tensor, nn

from expunge.audits.distance import l2
from expunge.audits.path import barriers
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.chain import Joint, joints
from expunge.core.contracts import Audit
from expunge.evidence.scores import Scores
from expunge.numerics.assignment import best_order, worth
from expunge.numerics.real import as_real

ROUNDING = 1e-12
"""A gain below this share of the units' similarity counts as rounding."""


@dataclass(frozen=True)
class AlignedDistance(Audit):
    """L2 distance and barrier after matching hidden units; predicts, does not judge."""

    cite: ClassVar[str] = "ainsworth2023rebasin"
    after_attack: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    points: Annotated[int, msgspec.Meta(ge=3)] = 21
    """Points on the path to the matched model, both ends included."""
    sample: Count = 1000
    """Retain examples to evaluate the path on, the same as `path`'s."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that is no plain chain of layers.

        Raises:
            MissingError: The model is no plain chain; names the place and what is supported.
        """
        joints(model)

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """One distance, in units of the weights, and mean cross-entropy on the path.

        Raises:
            MissingError: The model is no plain chain.
            SpecError: Model and original have different shapes.
        """
        matched = aligned(model, case.original)
        value, whole = np.array([l2(matched, case.original)]), np.zeros(1, dtype=np.int64)
        distance = Scores("aligned_l2", "weights", value, whole, "predictor", "weight", "reference", reduce="single")
        path = barriers("aligned_barrier", case.original, matched, case.problem, self.points, self.sample)
        return [distance, *path]


def aligned(model: nn.Module, original: nn.Module) -> nn.Module:
    """A copy of the model that computes the same function, with its hidden units in the order closest to the original.

    Args:
        model: A plain chain of layers; the copy's outputs are the same up to rounding.
        original: A chain of the same shapes.

    Raises:
        MissingError: One of them is no plain chain.
        SpecError: They have different shapes.
    """
    plain = l2(model, original)
    kept, matched = copy.deepcopy(model), copy.deepcopy(model)
    # A diverged model has no similarities to match; its distance is not finite in any order.
    if not np.isfinite(plain):
        return kept
    _match(kept, original)
    for joint, target in zip(joints(matched), joints(original), strict=True):
        joint.permute(best_order(_similarity(target.incoming, joint.incoming), joint.groups))
    _match(matched, original)
    return min(kept, matched, key=lambda candidate: l2(candidate, original))


def _match(model: nn.Module, original: nn.Module) -> None:
    """Improve the order of the units layer by layer, in place, until no layer improves."""
    pairs = list(zip(joints(model), joints(original), strict=True))
    while sum(_improve(joint, target) for joint, target in pairs):
        pass


def _improve(joint: Joint, target: Joint) -> bool:
    # With all else fixed, the squared distance is a constant minus twice the sum of matched units' inner products.
    similarity = _similarity(target.incoming, joint.incoming) + _similarity(target.outgoing, joint.outgoing)
    order = best_order(similarity, joint.groups)
    gain = worth(similarity, order) - float(similarity.trace())
    if gain <= ROUNDING * float(similarity.abs().max()) * joint.units:
        return False
    joint.permute(order)
    return True


def _similarity(first: Tensor, second: Tensor) -> Tensor:
    first, second = (as_real(units).flatten(1).double() for units in (first, second))
    return first @ second.T
