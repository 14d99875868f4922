"""Which training examples an answer rests on: influence in the basis of EK-FAC (Grosse et al., 2308.03296).

    I(q, m) = sum over layers and components ij of  (U^T D_q V)_ij (U^T D_m V)_ij / (Lambda_ij + damping * mean Lambda)

D_q and D_m are the gradients of the losses of a query and of an example by a layer's weight, Lambda the eigenvalues of
EK-FAC over examples. A first-order estimate of the influence: if one of n training examples is left out, the query's
loss rises by about I / n. Tracing a recitation to its source is asking for the examples with the largest influence on
it. Weights only: biases, norms and embeddings have no factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.numerics._capture import Losses
from expunge.numerics._cases import Cases, runs
from expunge.numerics.eigenbasis import Eigenbasis


def influence(
    model: nn.Module,
    losses: Losses,
    queries: Iterable[Any],
    examples: Iterable[Any],
    layers: Mapping[str, nn.Module],
    bases: Mapping[str, Eigenbasis],
    eigenvalues: Mapping[str, Tensor],
    damping: float = 0.1,
) -> Tensor:
    """The influence of each training example on each query.

    A training example's gradient is never made: its product with a query's is taken position by position. The queries'
    gradients are kept, so there should be few.

    Args:
        model: The module, in evaluation mode.
        losses: Each example's loss `[b]`; of a query, the loss that is explained.
        queries: Batches of queries.
        examples: Batches of training examples.
        layers: By path; a layer may run several times in a pass.
        bases: Their eigenbases.
        eigenvalues: Of EK-FAC over examples, by path, `[d_out, d_in]`.
        damping: Times the mean eigenvalue of a layer, added to its eigenvalues; above 0.

    Returns:
        `[queries, examples]` float64, in the order of the batches.

    Raises:
        SpecError: There are no queries or examples, or `damping` is not above 0.
    """
    if damping <= 0:
        raise SpecError(f"found {damping}", where="damping", allowed="a number above 0")
    rotations = {path: (basis.gradients, basis.inputs) for path, basis in bases.items()}
    asked = [_gradients(batch, rotations) for batch in runs(model, losses, queries, layers)]
    if not asked:
        raise SpecError("there are none", where="queries", remedy="give at least one batch")
    weighted = {}
    for path, values in eigenvalues.items():
        rows = torch.cat([gradients[path] for gradients in asked])
        wide = values.double()
        weighted[path] = rows / (wide + damping * wide.mean())
    columns = [_products(batch, rotations, weighted) for batch in runs(model, losses, examples, layers)]
    if not columns:
        raise SpecError("there are none", where="examples", remedy="give at least one batch")
    return torch.cat(columns, 1)


def _rotated(cases: Cases, rotations: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    left, right = rotations[cases.path]
    return cases.rows.gradients.double() @ left, cases.rows.inputs.double() @ right


def _gradients(batch: list[Cases], rotations: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Each example's gradient in the eigenbasis, `[b, d_out, d_in]` by path."""
    total: dict[str, Tensor] = {}
    for cases in batch:
        counts = torch.bincount(cases.owner, minlength=cases.size).tolist()
        parts = zip(*(side.split(counts) for side in _rotated(cases, rotations)), strict=True)
        own = torch.stack([g.T @ a for g, a in parts])
        total[cases.path] = own + total[cases.path] if cases.path in total else own
    return total


def _products(
    batch: list[Cases], rotations: Mapping[str, tuple[Tensor, Tensor]], weighted: Mapping[str, Tensor]
) -> Tensor:
    """Products of each query's weighted gradient with the gradient of each example of a batch, `[queries, b]`."""
    total = None
    for cases in batch:
        gradients, inputs = _rotated(cases, rotations)
        of_rows = torch.stack([((gradients @ query) * inputs).sum(1) for query in weighted[cases.path]])
        if total is None:
            total = of_rows.new_zeros(len(of_rows), cases.size)
        total.index_add_(1, cases.owner, of_rows)
    assert total is not None
    return total
