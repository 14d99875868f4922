"""Eigenbases of Kronecker factors, and the eigenvalues of EK-FAC in them.

    G = U diag(lambda) U^T, A = V diag(mu) V^T, eigenvalues in descending order

K-FAC takes lambda_i mu_j as the curvature along u_i v_j^T; EK-FAC measures it: E[(u_i^T g)^2 (v_j^T a)^2] over
positions, or E[(u_i^T D v_j)^2] over examples with gradient D = sum_t g_t a_t^T (George et al., 1806.03884). The two
agree if an example has one position. Decompositions are in float64, and small negative eigenvalues are set to 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.numerics._capture import Losses
from expunge.numerics._cases import Cases, Positions, runs
from expunge.numerics.kronecker import KroneckerFactors, LayerFactors


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvectors (columns) and eigenvalues of both factors of a layer, float64, in descending order."""

    gradients: Tensor
    """U, `[d_out, d_out]`."""
    gradient_values: Tensor
    """lambda, `[d_out]`."""
    inputs: Tensor
    """V, `[d_in, d_in]`."""
    input_values: Tensor
    """mu, `[d_in]`."""

    @property
    def products(self) -> Tensor:
        """K-FAC's eigenvalues lambda_i mu_j, `[d_out, d_in]`."""
        return torch.outer(self.gradient_values, self.input_values)


def eigenbases(factors: KroneckerFactors, paths: Iterable[str] | None = None) -> Iterator[tuple[str, Eigenbasis]]:
    """Path and eigenbasis of each layer, one after the other; a factor that neighbours share is decomposed once.

    Raises:
        SpecError: A factor is not finite.
    """
    inputs, decomposition = None, None
    for path in factors.layers if paths is None else paths:
        layer = factors.layers[path]
        if decomposition is None or layer.inputs is not inputs:
            inputs, decomposition = layer.inputs, decomposed(layer.inputs, path)
        yield path, Eigenbasis(*decomposed(layer.gradients, path), *decomposition)


def curvature_in(basis: Eigenbasis, factors: LayerFactors) -> Tensor:
    """K-FAC's curvature of other factors along the components of a basis: (u_i^T G u_i)(v_j^T A v_j), float64.

    Args:
        basis: U and V.
        factors: G and A, of other data.

    Returns:
        `[d_out, d_in]`; in the factors' own eigenbasis these are the products of their eigenvalues.
    """
    sides = ((basis.gradients, factors.gradients), (basis.inputs, factors.inputs))
    left, right = (((matrix.to(vectors) @ vectors) * vectors).sum(0).clamp(min=0) for vectors, matrix in sides)
    return torch.outer(left, right)


def decomposed(matrix: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Eigenvectors as columns and eigenvalues, at least 0, of a symmetric matrix, float64, descending.

    Raises:
        SpecError: The matrix is not finite.
    """
    if not matrix.isfinite().all():
        raise SpecError("a factor holds NaN or infinity", where=where, remedy="measure the factors again")
    # Not every accelerator has float64.
    wide = matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()
    values, vectors = torch.linalg.eigh(wide)
    return vectors.flip(1), values.flip(0).clamp(min=0)


def ekfac_eigenvalues(
    model: nn.Module,
    losses: Losses,
    batches: Iterable[Any],
    layers: Mapping[str, nn.Module],
    bases: Mapping[str, Eigenbasis],
    *,
    of: Literal["positions", "examples"] = "positions",
    positions: Positions | None = None,
) -> dict[str, Tensor]:
    """The eigenvalues of EK-FAC by path, `[d_out, d_in]`, in the basis of each layer.

    Args:
        model: The module, in evaluation mode.
        losses: Each example's loss `[b]`: the *sum* of the losses of its decisions.
        batches: The examples; none is kept.
        layers: The layers, by path.
        bases: Their eigenbases.
        of: Whether the mean is over positions, or over examples with their whole gradient.
        positions: Which positions count; all by default.

    Raises:
        SpecError: A layer does not run, or none of its positions counts.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    rotations: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in runs(model, losses, batches, layers, positions):
        for cases in batch:
            path, basis = cases.path, bases[cases.path]
            if path not in rotations:
                rotations[path] = (basis.gradients.to(cases.rows[1]), basis.inputs.to(cases.rows[0]))
            squares = (_over_positions if of == "positions" else _over_examples)(cases, *rotations[path])
            sums[path] = squares if path not in sums else sums[path].add_(squares)
            counts[path] = counts.get(path, 0) + (len(cases.owner) if of == "positions" else cases.size)
    missing = [path for path in layers if not counts.get(path)]
    if missing:
        raise SpecError("it did not run, or none of its positions counts", where=missing[0])
    return {path: sums[path] / counts[path] for path in layers}


def _over_positions(cases: Cases, left: Tensor, right: Tensor) -> Tensor:
    """Sum over rows of (u_i^T g)^2 (v_j^T a)^2: a product of two matrices."""
    return (cases.rows.gradients @ left).square_().T @ (cases.rows.inputs @ right).square_()


def _over_examples(cases: Cases, left: Tensor, right: Tensor) -> Tensor:
    """Sum over examples of (u_i^T D v_j)^2, where D is an example's whole gradient; one example at a time."""
    counts = torch.bincount(cases.owner, minlength=cases.size)
    if int(counts.max()) <= 1:
        return _over_positions(cases, left, right)
    gradients, inputs = cases.rows.gradients @ left, cases.rows.inputs @ right
    parts = zip(gradients.split(counts.tolist()), inputs.split(counts.tolist()), strict=True)
    total = gradients.new_zeros(gradients.shape[1], inputs.shape[1])
    for gradient, given in parts:
        total.add_((gradient.T @ given).square_())
    return total
