"""What layers compute over batches, one row per case: a position, or an example (see `kronecker`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.numerics._capture import Losses, Use, summed, uses, watched
from expunge.numerics._failures import explained
from expunge.numerics.batches import rows as rows_of
from expunge.numerics.factors import KroneckerRows, kronecker_rows
from expunge.numerics.precision import wide

Sharing = Literal["expand", "reduce"]
"""What one case of a layer with several positions is: a position, or an example."""
Positions = Callable[[str, Any, int], Tensor | None]
"""Which positions count: maps a layer's path, the batch and its number of positions per example to a mask
`[b, positions]` of bool; `None` for all."""


class Cases(NamedTuple):
    """One run of a layer over a batch."""

    path: str
    rows: KroneckerRows
    """Inputs and gradients, one row per position that counts, in float32 or wider."""
    owner: Tensor
    """Each row's example in the batch, `[rows]`."""
    size: int
    """Examples in the batch."""
    source: tuple[Any, ...]
    """Equal for layers with the same input tensor in this pass."""

    def shared_as(self, sharing: Sharing) -> KroneckerRows:
        """One row per case: for `reduce` the mean of an example's inputs, and the sum of its gradients."""
        if sharing == "expand":
            return self.rows
        counts = torch.bincount(self.owner, minlength=self.size).clamp(min=1)[:, None]
        sums = [side.new_zeros(self.size, side.shape[1]).index_add_(0, self.owner, side) for side in self.rows]
        return KroneckerRows(sums[0] / counts, sums[1])


def runs(
    model: nn.Module,
    losses: Losses,
    batches: Iterable[Any],
    layers: Mapping[str, nn.Module],
    positions: Positions | None = None,
) -> Iterator[list[Cases]]:
    """Run forward and backward over batches; for each batch, the runs of these layers in their order.

    Args:
        model: The module, in evaluation mode.
        losses: Each example's loss `[b]`: the *sum* of the losses of its decisions.
        batches: The examples.
        layers: By path.
        positions: Which positions count; all by default.

    Raises:
        MissingError: A layer's weight is not one matrix that multiplies its input.
        RunError: A loss is not finite, or a module cannot be differentiated; names it.
        SpecError: No loss depends on a layer, or a mask has another shape than `[b, positions]`.
    """
    for batch in batches:
        size, of_batch = rows_of(batch), []
        for use in _uses(model, losses, batch, layers):
            inputs = use.inputs
            rows = kronecker_rows(use.layer, wide(inputs), wide(use.gradients), use.path)
            source = (inputs.data_ptr(), inputs.shape, inputs.stride())
            of_batch.append(Cases(use.path, *counted_rows(rows, use.path, batch, size, positions), size, source))
        yield of_batch


def _uses(model: nn.Module, losses: Losses, batch: Any, layers: Mapping[str, nn.Module]) -> list[Use]:
    with watched(layers) as calls:
        total = summed(model, losses, batch)
    weights = [p for layer in layers.values() for p in layer.parameters(recurse=False) if p.requires_grad]
    with explained(model, lambda: summed(model, losses, batch), weights):
        return uses(calls, total)


def counted_rows(
    rows: KroneckerRows, path: str, batch: Any, size: int, positions: Positions | None
) -> tuple[KroneckerRows, Tensor]:
    """The rows of positions that count, and the example of each."""
    total = len(rows.inputs)
    count, rest = divmod(total, size)
    if rest:
        finding = f"it has {total} positions for {size} examples, so a position belongs to no example"
        raise SpecError(finding, where=path, remedy="leave the layer out")
    owner = torch.arange(total, device=rows.inputs.device) // max(count, 1)
    keep = None if positions is None else positions(path, batch, count)
    if keep is None:
        return rows, owner
    if keep.shape != (size, count):
        finding = f"the mask of positions has shape {list(keep.shape)}"
        raise SpecError(finding, where=path, allowed=f"[{size}, {count}]")
    kept = keep.to(owner.device).flatten().bool()
    return KroneckerRows(rows.inputs[kept], rows.gradients[kept]), owner[kept]
