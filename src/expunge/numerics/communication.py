"""Theory of discrete communication (2107.02367, section 3): bounds on how far a sample of messages is off, and sizes.

For every function of a message that is 0 outside of one cell and at most alpha inside, with probability 1 - delta the
mean over n draws differs from its expectation by at most

    discrete     alpha sqrt((G ln L + ln(2 / delta)) / (2 n))                 a cell is a message; theorem 1
    continuous   alpha sqrt((m ln(4 sqrt(n m)) + ln(2 / delta)) / (2 n))      the first term of theorem 2

The second theorem adds a term for the sensitivity to noise within a cell, `lipschitz_term`. Both are about deviations
within the distribution; neither says anything of another one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expunge.base.errors import SpecError


def discrete_bound(n: int, heads: int, codes: int, alpha: float = 1.0, delta: float = 0.05) -> float:
    """Theorem 1: the deviation of the mean over n messages of `heads` codes, each one of `codes`."""
    return _bound(n, heads * math.log(codes), alpha, delta)


def continuous_bound(n: int, width: int, alpha: float = 1.0, delta: float = 0.05) -> float:
    """The first term of theorem 2, for messages of `width` numbers in cells of a cover."""
    return _bound(n, width * math.log(4 * math.sqrt(n * width)), alpha, delta)


def lipschitz_term(n: int, lipschitz: float, norm: float, share: float = 1.0) -> float:
    """The second term of theorem 2: Lipschitz constant in the cell, largest norm of a message, share of the draws."""
    return lipschitz * share * norm / math.sqrt(n)


def effective_dimension(rows: Tensor) -> float:
    """Participation ratio of the spectrum of the covariance of rows `[n, d]`: d for white rows, 1 for a line."""
    centred = rows.double() - rows.double().mean(0)
    values = torch.linalg.svdvals(centred).square()
    total = float(values.sum())
    return total**2 / float(values.square().sum()) if total > 0 else 0.0


def _bound(n: int, size: float, alpha: float, delta: float) -> float:
    if n < 1 or not 0 < delta < 1:
        raise SpecError(f"n is {n} and delta {delta}", where="bound", allowed="n from 1, and delta between 0 and 1")
    return alpha * math.sqrt((size + math.log(2 / delta)) / (2 * n))
