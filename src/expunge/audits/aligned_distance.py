"""How far the weights moved once hidden units are matched: L2 and barrier to the original (2209.04836).

Two models that differ in the order of their units are the same and far apart. Units are matched by weights: one hidden
layer at a time, the order under which the layer's units are closest to the original's, given the order of all others,
by linear assignment, over and over until none improves. Behind a group norm only orders that leave it exact compete.
Running statistics move along and, as in `distance`, count for nothing.

Such a search ends in a local optimum. It runs from two starts and the closer result is taken: from the order that is
there, so that the distance is never larger than `distance`'s; and from each layer matched by its incoming weights
alone, input to output, which finds back any order that was merely drawn. The paper visits layers in random order, from
one start. Rescaled units are not scaled back.

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

ROUNDING = 1e-12
"""A smaller gain, as a share of the units' similarity, is none."""


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
            MissingError: Says where, and what is supported.
        """
        joints(model)

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """One distance, in units of the weights, and mean cross-entropy on the path.

        Raises:
            MissingError: The model is no plain chain.
            SpecError: Model and original are of different shapes.
        """
        matched = aligned(model, case.original)
        value, whole = np.array([l2(matched, case.original)]), np.zeros(1, dtype=np.int64)
        distance = Scores("aligned_l2", "weights", value, whole, "predictor", "weight", "reference", reduce="single")
        path = barriers("aligned_barrier", case.original, matched, case.problem, self.points, self.sample)
        return [distance, *path]


def aligned(model: nn.Module, original: nn.Module) -> nn.Module:
    """A copy of the model, the same function, with its hidden units in the order closest to the original's.

    Args:
        model: A plain chain of layers; its outputs stay as they are up to rounding.
        original: A chain of the same shapes.

    Raises:
        MissingError: One of them is no plain chain.
        SpecError: They are of different shapes.
    """
    plain = l2(model, original)
    kept, matched = copy.deepcopy(model), copy.deepcopy(model)
    # A diverged model has no similarity to anything; its distance is as it is.
    if not np.isfinite(plain):
        return kept
    _match(kept, original)
    for joint, target in zip(joints(matched), joints(original), strict=True):
        joint.permute(best_order(_similarity(target.incoming, joint.incoming), joint.groups))
    _match(matched, original)
    return min(kept, matched, key=lambda candidate: l2(candidate, original))


def _match(model: nn.Module, original: nn.Module) -> None:
    """Improve the order of one layer's units after another, in place, until none can be improved."""
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


def _similarity(here: Tensor, there: Tensor) -> Tensor:
    return here.double() @ there.double().T
