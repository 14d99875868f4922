"""An orthonormal basis grown by one product at a time, on which a symmetric operator is tridiagonal (Lanczos 1950).

    A q_k = beta_{k-1} q_{k-1} + alpha_k q_k + beta_k q_{k+1}

Each new vector is made orthogonal to *all* earlier ones, twice. With the three terms alone, rounding would reintroduce
directions that have converged, and the projection would repeat their eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from expunge.base.errors import RunError, SpecError

Operator = Callable[[Tensor], Tensor]
"""A symmetric matrix as a function from a flat vector `[p]` to its product `[p]`."""


class Krylov:
    """The basis and the projection after some products.

    If the Krylov space of the start is exhausted (`beta` vanishes), the next vector is drawn at random, orthogonal to
    all earlier ones. Then the projection consists of blocks, and a multiple eigenvalue appears again in the next block.

    Args:
        operator: The symmetric operator.
        start: The first vector `[p]`, not zero; its dtype and device are those of the basis.
        limit: Largest number of products; memory is `min(limit, p) + 1` vectors.
        generator: Draws vectors after a breakdown, on the CPU.

    Raises:
        SpecError: The start is not a vector, or is zero.
    """

    def __init__(self, operator: Operator, start: Tensor, limit: int, generator: torch.Generator) -> None:
        if start.ndim != 1 or len(start) == 0 or not start.norm() > 0:
            raise SpecError(
                f"has shape {list(start.shape)}, or is zero", where="start", allowed="a vector [p], not zero"
            )
        self.operator, self.generator = operator, generator
        self.size = len(start)
        self.epsilon = torch.finfo(start.dtype).eps
        self._basis = start.new_empty(min(limit, self.size) + 1, self.size)
        self._basis[0] = start / start.norm()
        self.products, self.scale = 0, 0.0
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.broke = False

    @property
    def basis(self) -> Tensor:
        """Orthonormal rows `[k, p]` after `k` products."""
        return self._basis[: self.products]

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.products == self.size

    def tridiagonal(self) -> Tensor:
        """The projection `[k, k]` in double precision on the CPU."""
        off = torch.tensor(self.betas[:-1], dtype=torch.float64)
        return torch.diag(torch.tensor(self.alphas, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)

    def step(self) -> None:
        """Take one product and extend the basis.

        Raises:
            SpecError: The shape of the product differs from that of the vector.
            RunError: The product is not finite, or the operator is not symmetric or not the same each time.
        """
        product = self._product(self._basis[self.products])
        self.products += 1
        seen = self.basis
        along = seen @ product
        self._require_symmetric(along, product)
        product -= along @ seen
        product -= (seen @ product) @ seen
        self.alphas.append(float(along[-1]))
        beta = float(product.norm())
        self.scale = max(self.scale, abs(self.alphas[-1]), beta)
        self.broke = self.complete or beta <= 10 * self.epsilon * self.scale * self.size**0.5
        self.betas.append(0.0 if self.broke else beta)
        if not self.complete:
            self._basis[self.products] = self._orthogonal() if self.broke else product / beta

    def _product(self, vector: Tensor) -> Tensor:
        product = self.operator(vector.clone())
        if product.shape != vector.shape:
            raise SpecError(f"a product has shape {list(product.shape)}", where="operator", allowed=f"[{self.size}]")
        if not product.isfinite().all():
            raise RunError(f"product {self.products + 1} is not finite", where="operator")
        return product.detach().to(vector, copy=True)

    def _require_symmetric(self, along: Tensor, product: Tensor) -> None:
        # For a symmetric operator, a product is in the span of the last two vectors and the new one; checking is cheap.
        expected = torch.zeros_like(along)
        if len(self.betas) and not self.broke:
            expected[-2] = self.betas[-1]
        expected[-1] = along[-1]
        allowed = self.epsilon ** (1 / 3) * max(self.scale, float(product.norm()))
        if float((along - expected).norm()) <= allowed:
            return
        if float((self._product(self._basis[self.products - 1]) - product).norm()) > allowed:
            finding = "gives another product each time"
            remedy = "turn off dropout and other randomness, and give the same batches in each product"
        else:
            finding = "is not symmetric: a function in the model has a wrong second derivative"
            remedy = "replace functions with a backward pass of their own by plain PyTorch operations"
        raise RunError(finding, where="operator", remedy=remedy)

    def _orthogonal(self) -> Tensor:
        # With probability one, a draw is not in the span of the basis; two passes, as above.
        drawn = torch.randn(self.size, generator=self.generator, dtype=torch.float64).to(self._basis)
        for _ in range(2):
            drawn = drawn / drawn.norm()
            drawn = drawn - (self.basis @ drawn) @ self.basis
        unit: Tensor = drawn / drawn.norm()
        return unit
