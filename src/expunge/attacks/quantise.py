"""Round the weights to a few bits, and test whether forgotten knowledge comes back.

Unlearning often moves weights by less than a step of an 8 or 4 bit grid, and rounding then undoes it (2410.16454, for
language models). Symmetric, to the nearest of 2^bits - 1 values, with a step s for each group of weights of a row:

    w  <-  s round(w / s),    s = max |w| / (2^(bits - 1) - 1)

A row holds the weights of one output. Matrices and convolutions are rounded. Embeddings, the output layer of a Hugging
Face model, biases and the scales of norms are not. This is common practice: bitsandbytes rounds groups of 64 weights,
GPTQ and AWQ groups of 128, and all leave out embeddings and the output layer. One step for a whole tensor would destroy
most language models at 4 bits. Real and imaginary parts of complex weights are
rounded on one grid. Values remain floating point, so every audit can run.

The original is attacked too, as a control: if rounding destroys what the original knows, then it says nothing about
what a method has hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.attacks._unexposed import edited
from expunge.base.part import Natural
from expunge.core.case import Attacked, Case
from expunge.core.contracts import Attack
from expunge.core.modules import embedding_layer, is_transposed
from expunge.numerics.real import as_real, is_continuous


@dataclass(frozen=True)
class Quantise(Attack):
    """Quantisation of the weights."""

    cite: ClassVar[str] = "zhang2024quantization"
    version: ClassVar[int] = 2
    control: ClassVar[bool] = True

    bits: Annotated[int, msgspec.Meta(ge=2, le=16)] = 8
    """Bits per weight, from 2 to 16; 8 and 4 are the usual ones."""
    group: Natural = 64
    """Weights of a row that share a step; the last group of a row may be smaller. 0 means the whole row."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        """A copy with rounded weights."""
        return edited(model, case, lambda student: quantise(student, self.bits, self.group))


def quantise(model: nn.Module, bits: int, group: int = 0) -> None:
    """Round the model's matrices and convolutions in place, except embeddings and what is tied to them.

    Args:
        model: The model.
        bits: Bits per weight.
        group: Weights of a row that share a step; 0 for the whole row.
    """
    done = {id(weight) for module in _embeddings(model) for weight in module.parameters(recurse=False)}
    with torch.no_grad():
        for module in model.modules():
            for weight in module.parameters(recurse=False):
                if id(weight) in done or weight.ndim < 2 or not is_continuous(weight):
                    continue
                done.add(id(weight))
                rows = as_real(weight.T if is_transposed(module) else weight)
                rows.copy_(rounded(rows, bits, group))


def _embeddings(model: nn.Module) -> list[nn.Module]:
    """All embeddings, and the output layers of Hugging Face models."""
    modules = list(model.modules())
    heads = [embedding_layer(module, "output") for module in modules]
    return [*(m for m in modules if isinstance(m, nn.Embedding)), *(head for head in heads if head is not None)]


def rounded(weight: Tensor, bits: int, group: int = 0) -> Tensor:
    """Each weight's nearest point on its group's symmetric grid from -max |w| to max |w|; a tie goes to the even point.

    Args:
        weight: `[rows, ...]`; without a second dimension it is one row.
        bits: A grid has 2^bits - 1 points, including 0.
        group: Weights of a row that share a grid; 0 for the whole row.

    Returns:
        A tensor of the same shape and dtype; rounding it again changes nothing.
    """
    if not weight.numel():
        return weight.clone()
    # Double precision keeps the largest weight exactly, so rounding again uses the same grid.
    exact = weight.double().flatten(1) if weight.ndim > 1 else weight.double()[None]
    columns = exact.shape[1]
    size = min(group or columns, columns)
    groups = F.pad(exact, (0, -columns % size)).unflatten(1, (-1, size))
    step = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    # Where all weights of a group are 0, any step leaves them 0.
    on_grid: Tensor = torch.round(groups / step.where(step > 0, 1.0)) * step
    return on_grid.flatten(1)[:, :columns].reshape(weight.shape).to(weight.dtype)
