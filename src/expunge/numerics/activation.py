"""How strongly examples activate parts of layers: the norm of M a for matrices M over the inputs a of a layer.

    bands of curvature     M = V_B^T, the eigenvectors of a range of eigenvalues of the inputs' second moment
    response to an edit    |(W - W_edit) a| / |W a|: the share of a layer's response that the edit removes

Section 4 of 2510.24256: memorised sequences activate directions of low curvature more strongly than other text does.
No gradients and no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.numerics._capture import Call, watched
from expunge.numerics._cases import Positions, counted_rows
from expunge.numerics.batches import rows as rows_of
from expunge.numerics.eigenbasis import Eigenbasis
from expunge.numerics.factors import kronecker_rows
from expunge.numerics.precision import wide

BANDS = {"top 10 %": (0.0, 0.1), "10-25 %": (0.1, 0.25), "25-50 %": (0.25, 0.5), "lowest half": (0.5, 1.0)}
"""Bands of the paper: ranges of a layer's input directions, in the order of their curvature."""


def band_maps(basis: Eigenbasis) -> dict[str, Tensor]:
    """The input directions of each of `BANDS` as rows, `[k, d_in]`, float64.

    A layer with fewer than ten inputs has bands without directions; these are left out.
    """
    size = len(basis.input_values)
    ranges = {name: (round(low * size), round(high * size)) for name, (low, high) in BANDS.items()}
    return {name: basis.inputs[:, low:high].T for name, (low, high) in ranges.items() if high > low}


def activations(
    model: nn.Module,
    forward: Callable[[nn.Module, Any], Any],
    batches: Iterable[Any],
    layers: Mapping[str, nn.Module],
    maps: Mapping[str, Mapping[str, Tensor]],
    positions: Positions | None = None,
) -> dict[str, dict[str, Tensor]]:
    """The norm of M a over the positions of each example that count: sqrt(sum_t |M a_t|^2).

    Args:
        model: The module, in evaluation mode.
        forward: Runs the module on a batch.
        batches: The examples; none is kept.
        layers: Linear layers, Conv1D of transformers, and convolutions in one group, by path. A layer may run several
            times in a pass; its positions are then those of all runs.
        maps: By path and name, M `[k, d_in]`.
        positions: Which positions count; all by default.

    Returns:
        By path and name, `[n]` float64 on the CPU, in the order of the batches.

    Raises:
        MissingError: A layer's weight is not one matrix that multiplies its input.
        SpecError: There is no batch, or a layer does not run.
    """
    squares: dict[tuple[str, str], list[Tensor]] = {(path, name): [] for path in layers for name in maps[path]}
    with torch.no_grad():
        for batch in batches:
            size, sums = rows_of(batch), dict[tuple[str, str], Tensor]()
            with watched(layers, in_place=False) as calls:
                forward(model, batch)
            for call in calls:
                for name, own in _squares(call, batch, size, maps[call.path], positions).items():
                    sums[call.path, name] = sums.get((call.path, name), 0) + own
            for key, parts in squares.items():
                if key not in sums:
                    raise SpecError(
                        "it did not run", where=key[0], remedy="leave the layer out, or give other examples"
                    )
                parts.append(sums[key].double().cpu())
    if not next(iter(squares.values()), [None]):
        raise SpecError("there are none", where="examples", remedy="give at least one batch")
    return {path: {name: torch.cat(squares[path, name]).sqrt() for name in maps[path]} for path in layers}


def _squares(
    call: Call, batch: Any, size: int, maps: Mapping[str, Tensor], positions: Positions | None
) -> dict[str, Tensor]:
    """For each map, the sum over an example's positions of |M a|^2, `[size]`."""
    # Unfolding a convolution's inputs needs a gradient of the right shape, whatever its values are.
    rows = kronecker_rows(call.layer, wide(call.inputs), wide(call.output), call.path)
    (inputs, _), owner = counted_rows(rows, call.path, batch, size, positions)
    totals = {}
    for name, matrix in maps.items():
        each = (inputs @ matrix.to(inputs).T).square().sum(1)
        totals[name] = each.new_zeros(size).index_add_(0, owner, each)
    return totals


def removed_share(norms: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Mean over layers of |(W - W_edit) a| / |W a|, `[n]`; 0 where a layer has no response at all.

    Args:
        norms: Of `activations` with the maps `removed` and `whole` in each layer.
    """
    shares = [of["removed"] / of["whole"].clamp(min=torch.finfo(torch.float64).tiny) for of in norms.values()]
    return torch.stack(shares).mean(0)
