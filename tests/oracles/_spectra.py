"""Dense symmetric matrices whose eigenvalues are known."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_spectrum(values: Tensor, seed: int = 5) -> Tensor:
    """A dense symmetric matrix with these eigenvalues, in a random basis."""
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=seeded(seed)).double())
    return (basis * values) @ basis.T


class Counted:
    """A matrix as an operator that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.count = matrix, 0

    def __call__(self, vector: Tensor) -> Tensor:
        self.count += 1
        return self.matrix @ vector
