"""Round the weights to a few bits, and test whether forgotten knowledge comes back.

Unlearning often moves weights by less than a step of an 8 or 4 bit grid, and rounding then undoes it (2410.16454, for
language models). Per tensor, symmetric, to the nearest of 2^bits - 1 values:

    w  <-  s round(w / s),    s = max |w| / (2^(bits - 1) - 1)

Matrices, convolutions and embeddings are rounded; biases and the scales of norms are not, as in practice. Real and
imaginary parts of complex weights are rounded on one grid. Values remain floating point, so every audit can run.
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
from expunge.numerics.real import as_real, is_continuous


@dataclass(frozen=True)
class Quantise(Attack):
    """Quantisation of the weights."""

    cite: ClassVar[str] = "zhang2024quantization"

    bits: Annotated[int, msgspec.Meta(ge=2, le=16)] = 8
    """Bits per weight, from 2 to 16; 8 and 4 are the usual ones."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        """A copy with rounded weights."""

        def edit(student: nn.Module) -> None:
            for weight in student.parameters():
                if weight.ndim > 1 and is_continuous(weight):
                    values = as_real(weight.detach())
                    values.copy_(rounded(values, self.bits))

        return edited(model, case, edit)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Each weight's nearest point on a symmetric grid from -max |w| to max |w|; a tie goes to the even point.

    Args:
        weight: A real tensor of any shape.
        bits: The grid has 2^bits - 1 points, including 0.

    Returns:
        A tensor of the same shape and dtype; rounding it again changes nothing.
    """
    # Double precision keeps the largest weight exactly, so rounding again uses the same grid.
    exact = weight.double()
    most = exact.abs().max() if weight.numel() else exact.new_zeros(())
    if most == 0:
        return weight.clone()
    step = most / (2 ** (bits - 1) - 1)
    on_grid: Tensor = (torch.round(exact / step) * step).to(weight.dtype)
    return on_grid
