"""Gram matrices of per-example gradients, without the gradients.

    K_ij = <dl_i/dw, dl_j/dw>, summed over parameters, for one set of examples or between two

The factors of each layer's gradients (`factors`) give its part of K exactly. Blocks of examples go in pairs, so memory
contains the factors of two blocks only. Some parameters have no factors: those of other layers, a bare parameter, or a
weight that is also used outside of its layer. A comparison with autograd on two examples detects them; their gradients
are taken one example at a time, which is slower but exact too. A shared weight is the sum over its uses, including
cross terms. Complex weights have no factors; the inner product is that of their real and imaginary parts.

Cost: for n examples in B blocks n (B + 1) / 2 gradients, without those of the weights, and n more one by one if a
parameter has no factors; K between sets of n and m takes n + B m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.numerics._capture import Losses, captured, example_losses, summed
from expunge.numerics._failures import explained
from expunge.numerics._modules import require_fixed, require_parameters
from expunge.numerics._overlap import gradients, overlap
from expunge.numerics.agreement import deviations, require_sound
from expunge.numerics.batches import parts, rows, take
from expunge.numerics.factors import Factors
from expunge.numerics.norms import sound_norms
from expunge.numerics.real import as_real, flat

KEPT = 2**24
"""Largest number of entries of one-by-one gradients to keep between blocks; above, they are recomputed per pair."""

ONE_BY_ONE = "one by one"


@dataclass(frozen=True)
class Gram:
    """Inner products of per-example gradients, and how each parameter's part was computed."""

    matrix: Tensor
    """`[n, m]`, in the parameters' real dtype and on their device."""
    ways: dict[str, str]
    """By parameter: `products`, `gradients` (of a block, for this parameter only) or `one by one`."""

    @property
    def unsupported(self) -> list[str]:
        """Parameters without factors, whose gradients were taken one example at a time."""
        return [name for name, way in self.ways.items() if way == ONE_BY_ONE]


@sound_norms()
def gram(
    losses: Losses,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    examples: Any,
    others: Any = None,
    *,
    block: int = 128,
) -> Gram:
    """The Gram matrix of one set, or of two sets.

    Args:
        losses: Maps the module and a batch to each example's loss `[b]`, which must not depend on other examples.
        model: The module, in evaluation mode if it has batch norm or dropout.
        parameters: The parameters to differentiate by; `differentiable(model)` for all.
        examples: `n` examples: a tensor, or a tuple or dict of tensors whose first dimension counts them.
        others: `m` examples of a second set; by default the first set, which gives a symmetric matrix.
        block: Examples at a time; a larger block needs more memory and fewer passes.

    Returns:
        The matrix `[n, m]`, and how each parameter's part was computed.

    Raises:
        SpecError: There is no example; parameters are frozen, or not the model's; the number of losses is not that of
            the examples; batch norm or dropout is in training mode.
        RunError: A loss is not finite, or a module cannot be differentiated; names it.
    """
    names = _names(model, parameters)
    require_fixed(model)
    ours = _Examples(losses, model, names, examples, block)
    theirs = ours if others is None else _Examples(losses, model, names, others, block)
    alone = ours.without_factors
    ways = dict.fromkeys(alone, ONE_BY_ONE)
    matrix = as_real(parameters[0].detach()).new_zeros(rows(examples), rows(theirs.examples))
    for left in parts(len(matrix), block):
        a = ours.factors(left)
        for right in parts(matrix.shape[1], block):
            if theirs is ours and right.start < left.start:
                matrix[left, right] = matrix[right, left].T
                continue
            b = a if theirs is ours and right == left else theirs.factors(right)
            pair = _pair(a, b, names, ways)
            if alone:
                pair = pair + ours.one_by_one(left, alone) @ theirs.one_by_one(right, alone).T
            # Sums in another order differ in the last digit; make the matrix symmetric to the bit.
            matrix[left, right] = (pair + pair.T) / 2 if b is a else pair
    return Gram(matrix, {name: ways[name] for name in names if name in ways})


def _names(model: nn.Module, parameters: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
    require_parameters(parameters)
    wanted = {id(parameter) for parameter in parameters}
    by_name = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}
    if len(by_name) != len(parameters):
        raise SpecError(
            f"{len(parameters) - len(by_name)} are not the model's, or given twice",
            where="parameters",
            remedy="take those of numerics.linops.differentiable(model)",
        )
    return by_name


_Block = Mapping[str, list[Factors]]


def _pair(a: _Block, b: _Block, names: Mapping[str, nn.Parameter], ways: dict[str, str]) -> Tensor:
    total = torch.zeros(()).to(as_real(next(iter(names.values())).detach()))
    for name, parameter in names.items():
        if name in a and name in b and ways.get(name) != ONE_BY_ONE:
            part, by_products = overlap(a[name], b[name], parameter.shape)
            ways.setdefault(name, "products" if by_products else "gradients")
            total = total + part
    return total


@dataclass(frozen=True)
class _Examples:
    """One set, block by block."""

    losses: Losses
    model: nn.Module
    names: dict[str, nn.Parameter]
    examples: Any
    block: int
    kept: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if rows(self.examples) == 0 or self.block < 1:
            finding = f"{rows(self.examples)} examples in blocks of {self.block}"
            raise SpecError(finding, where="examples", allowed="at least one example, and blocks of at least one")

    def factors(self, part: slice) -> _Block:
        by_id = {id(parameter): name for name, parameter in self.names.items()}
        return captured(self.model, self.losses, take(self.examples, part), by_id)

    def one_by_one(self, part: slice, names: Sequence[str]) -> Tensor:
        """Gradients `[b, k]` by these parameters, from one pass per example."""
        if part.start in self.kept:
            return self.kept[part.start]
        each = [self._alone(index, names) for index in range(part.start, part.stop)]
        stacked = torch.stack([flat(own) for own in each])
        if rows(self.examples) * stacked.shape[1] <= KEPT:
            self.kept[part.start] = stacked
        return stacked

    @cached_property
    def without_factors(self) -> list[str]:
        """Parameters whose factors disagree with autograd, on the two examples of the first block with most loss."""
        part = next(parts(rows(self.examples), self.block))
        with torch.no_grad():
            losses = example_losses(self.model, self.losses, take(self.examples, part))
        block = self.factors(part)
        # A parameter that no layer used in this block may be used by another example.
        wrong = {name for name in self.names if name not in block}
        largest = losses.topk(min(2, len(losses))).indices.tolist()
        for index in largest:
            truth = dict(zip(self.names, self._alone(index, list(self.names)), strict=True))
            uses = {name: [use.part(slice(index, index + 1)) for use in block[name]] for name in block}
            ours = {name: gradients(own, slice(None), self.names[name].shape) for name, own in uses.items()}
            wrong |= deviations(ours, truth, losses.dtype).keys()
        for index in largest if wrong else ():
            require_sound(self.model, partial(self._copies, index), losses.dtype)
        return [name for name in self.names if name in wrong]

    def _copies(self, index: int, count: int) -> Tensor:
        """The losses of some copies of an example, `[count]`."""
        with torch.enable_grad():
            return example_losses(self.model, self.losses, take(self.examples, torch.tensor([index] * count)))

    def _alone(self, index: int, names: Sequence[str]) -> list[Tensor]:
        wanted = [self.names[name] for name in names]
        example = take(self.examples, slice(index, index + 1))
        loss = summed(self.model, self.losses, example)
        with explained(self.model, lambda: summed(self.model, self.losses, example), wanted):
            slopes = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        return [slope.to_dense() if slope.is_sparse else slope for slope in slopes]
