"""Change the weights and not the function: hidden units in another order, ReLU units rescaled (a control, 1703.04933).

Permuting the units of a hidden layer leaves every output as it was. So does multiplying the weights into a ReLU unit by
a positive number and dividing the weights out of it by the same number. So nothing is learned and nothing forgotten,
while the distance to the original and the barrier on the straight path to it grow. Where such a model resists
relearning no better than before, distance in weight space is no *cause* of resistance (2505.22310 shows that it
predicts).

Orders: uniform over all that leave the function as it is; in front of a group norm, whole groups change places, and
channels within a group. Factors: exp(rescale * N(0, 1)), only on units without a norm behind them; a norm would undo
the factor but for its epsilon. Layers with a frozen tensor in them stay as they are. The order of units makes no
difference to gradient descent, with momentum and Adam too; rescaling does.

Cost: none; no gradient is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import nn

from expunge.base.errors import MissingError, SpecError
from expunge.core.chain import Joint, joints
from expunge.core.contracts import Method
from expunge.core.job import Job
from expunge.numerics.assignment import random_order


@dataclass(frozen=True)
class Symmetry(Method):
    """The same function from other weights."""

    cite: ClassVar[str] = "dinh2017sharp"
    paper: ClassVar[str] = "symmetries of ReLU nets, 2017"
    effort: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    permute: bool = True
    """Whether hidden units are put in a random order."""
    rescale: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.0
    """Standard deviation of the logarithm of the units' factors; at 5 some weights are 1e8 times what they were."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.permute and not self.rescale:
            raise SpecError("nothing would change", where="rescale", remedy="set permute = true, or rescale above 0")

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that is no plain chain of layers, or has no unit that may be moved or rescaled.

        Raises:
            MissingError: Says where, and what is supported.
        """
        free = _free(model)
        if not self.permute and not any(joint.homogeneous for joint in free):
            raise MissingError(
                "every hidden unit has a norm behind it, or an activation that no factor passes",
                remedy="set permute = true, or choose a model without norms",
            )

    def expected_gradients(self, retain: int, forget: int) -> float:
        """None: nothing is trained."""
        return 0

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Permute, then rescale, each hidden layer."""
        orders, scales = job.generator("orders"), job.generator("scales")
        for joint in _free(student):
            if self.permute:
                joint.permute(random_order(joint.units, joint.groups, orders))
            if self.rescale and joint.homogeneous:
                drawn = torch.randn(joint.units, generator=scales, dtype=torch.float64)
                joint.rescale((self.rescale * drawn).exp())
        return student


def _free(model: nn.Module) -> list[Joint]:
    free = [joint for joint in joints(model) if all(p.requires_grad for p in joint.parameters)]
    if not free:
        raise MissingError(
            "every hidden layer holds a frozen tensor", remedy="set requires_grad on a layer and the one after it"
        )
    return free
