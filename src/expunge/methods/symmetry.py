"""Change the weights but not the function: permute hidden units, rescale ReLU units (a control, 1703.04933).

Permuting the units of a hidden layer does not change any output. Neither does multiplying the weights into a ReLU unit
by a positive number and dividing the weights out of it by the same number. So the model learns and forgets nothing, but
its distance to its input model and the barrier on the straight path to it grow. If such a model resists relearning no
better than before, distance in weight space is not a *cause* of resistance (2505.22310 shows that it predicts
resistance).

Orders: uniform over all orders that keep the function; in front of a group norm, whole groups change places, and
channels within a group. Factors: exp(rescale * N(0, 1)), only on units without a norm behind them; a norm would cancel
the factor, except for its epsilon. Layers with a frozen tensor do not change. The order of units makes no difference to
gradient descent, also with momentum or Adam; rescaling does.

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
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.numerics.assignment import random_order


@dataclass(frozen=True)
class Symmetry(Method):
    """The same function from other weights."""

    cite: ClassVar[str] = "dinh2017sharp"
    paper: ClassVar[str] = "symmetries of ReLU nets, 2017"
    effort: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    permute: bool = True
    """Whether hidden units are permuted at random."""
    rescale: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.0
    """Standard deviation of the logarithm of the units' factors; at 5 some weights grow by a factor of 1e8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.permute and not self.rescale:
            raise SpecError("nothing would change", where="rescale", remedy="set permute = true, or rescale above 0")

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that is not a plain chain of layers, or has no unit that can be moved or rescaled.

        Raises:
            MissingError: The model is refused; the message says where, and what is supported.
        """
        free = _free(model)
        if not self.permute and not any(joint.homogeneous for joint in free):
            raise MissingError(
                "every hidden unit has a norm behind it, or an activation that is not homogeneous",
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
