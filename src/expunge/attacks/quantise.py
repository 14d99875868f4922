"""Round the weights to a few bits, and see whether what was unlearned comes back.

Unlearning often moves weights by less than a step of an 8 or 4 bit grid, and rounding then undoes it (2410.16454, for
language models). Per tensor, symmetric, to the nearest of 2^bits - 1 values:

    w  <-  s round(w / s),    s = max |w| / (2^(bits - 1) - 1)

Matrices, convolutions and embeddings are rounded; biases and the scales of norms are not, as in practice. Values stay
floating point, so that every audit can run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from expunge.attacks._unexposed import edited
from expunge.core.case import Attacked, Case
from expunge.core.contracts import Attack


@dataclass(frozen=True)
class Quantise(Attack):
    """Quantisation of the weights."""

    cite: ClassVar[str] = "zhang2024quantization"

    bits: Annotated[int, msgspec.Meta(ge=2, le=16)] = 8
    """Bits per weight, from 2 to 16; 8 and 4 are what models are shipped with."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        """A copy with rounded weights."""

        def edit(student: nn.Module) -> None:
            with torch.no_grad():
                for weight in student.parameters():
                    if weight.ndim > 1 and weight.is_floating_point():
                        weight.copy_(rounded(weight, self.bits))

        return edited(model, case, edit)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest points of a symmetric grid that reaches from -max |w| to max |w|; of a tie, the even one.

    Args:
        weight: Of any shape.
        bits: The grid has 2^bits - 1 points, 0 among them.

    Returns:
        A tensor of the same shape and dtype; rounding it again changes nothing.
    """
    # In double precision, so that the largest weight stays what it is and the grid is the same the next time.
    exact = weight.double()
    most = exact.abs().max() if weight.numel() else exact.new_zeros(())
    if most == 0:
        return weight.clone()
    step = most / (2 ** (bits - 1) - 1)
    found: Tensor = (torch.round(exact / step) * step).to(weight.dtype)
    return found
