"""How far an estimator's gradient is from the exact one: bias, variance, cosine and gradient gap.

With the exact gradient e of the mean loss by the logits, and S independent estimates of it,

    bias = |E[estimate] - e|,    variance = E|estimate - E[estimate]|^2,    cosine = cos(E[estimate], e)

over all entries of all logits together. The mean of S estimates is off by variance / S in squared norm even without
bias, so that much is subtracted from the squared bias. The gradient gap (after Huh et al., 2023) is the distance
between the gradients with the relaxed and with the hard choice in the forward pass, as a share of the latter's norm;
the normaliser is ours.

Cost: S forward and backward passes of the loss, twice that for the gap, and C^N passes for the exact gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import RunError, SpecError
from expunge.numerics._estimator import Loss
from expunge.numerics.estimators import Estimator, Exact, Pathwise, two_categories


@dataclass(frozen=True)
class EstimatorDiagnosis:
    """Numbers in units of the gradient by the logits."""

    bias: float
    """Corrected for the finite number of samples; 0 if the estimates scatter too much to show one."""
    floor: float
    """The bias that sampling alone would show before the correction; a bias far below it is not resolved."""
    variance: float
    """Sum over all entries."""
    cosine: float
    """Of the mean estimate with the exact gradient; pulled towards 0 by a finite number of samples."""
    gap: float | None
    """The gradient gap; `None` for an estimator without a relaxed choice."""
    exact: float
    """Norm of the exact gradient."""
    samples: int

    @property
    def relative_bias(self) -> float:
        """The bias as a share of the exact gradient."""
        return self.bias / self.exact if self.exact > 0 else math.inf


def diagnose_estimator(
    choice: Estimator,
    logits: Tensor,
    loss: Loss,
    generator: torch.Generator,
    *,
    samples: int = 256,
    binary: bool = False,
    chunk: int = 64,
) -> EstimatorDiagnosis:
    """Compare an estimator with the exact gradient, by enumeration.

    Args:
        choice: The estimator with its temperatures.
        logits: `[..., N, C]`; with `binary`, `[..., N]`.
        loss: Maps choices of this shape, with more leading dimensions, to losses `[...]`; the weights in it are left
            alone. It must be deterministic.
        generator: Decides the choices.
        samples: Number of estimates, at least 2.
        binary: Whether choices are zeros and ones, by one logit each.
        chunk: Number of estimates that are computed at once.

    Returns:
        The comparison.

    Raises:
        SpecError: There are too many combinations to enumerate, fewer than 2 samples or only one category.
        RunError: A gradient is not finite.
    """
    if samples < 2 or chunk < 1:
        finding = f"samples = {samples}, chunk = {chunk}"
        raise SpecError(finding, where="diagnose_estimator", allowed="at least 2, and at least 1")
    target = exact_gradient(logits, loss, choice, binary=binary).double()
    total, squares, gaps, norms = torch.zeros_like(target), 0.0, 0.0, 0.0
    for count in _chunks(samples, chunk):
        estimates, relaxed = _estimates(choice, logits.detach().expand(count, *logits.shape), loss, generator, binary)
        total += estimates.sum(0)
        squares += float(estimates.square().sum())
        if relaxed is not None:
            gaps += float((relaxed - estimates).flatten(1).norm(dim=1).sum())
            norms += float(estimates.flatten(1).norm(dim=1).sum())
    mean = total / samples
    variance = max(squares - samples * float(mean.square().sum()), 0.0) / (samples - 1)
    bias = math.sqrt(max(float((mean - target).square().sum()) - variance / samples, 0.0))
    length = float(mean.norm()) * float(target.norm())
    return EstimatorDiagnosis(
        bias=bias,
        floor=math.sqrt(variance / samples),
        variance=variance,
        cosine=float((mean * target).sum()) / length if length > 0 else 0.0,
        gap=gaps / norms if norms > 0 else None,
        exact=float(target.norm()),
        samples=samples,
    )


def exact_gradient(logits: Tensor, loss: Loss, law: Estimator, *, binary: bool = False) -> Tensor:
    """The gradient of the mean loss by the logits, with choices of the estimator's forward law.

    Args:
        logits: `[..., N, C]`; with `binary`, `[..., N]`.
        loss: As for `diagnose_estimator`.
        law: The estimator whose forward temperature the choices have.
        binary: Whether choices are zeros and ones.

    Returns:
        A tensor of the shape of the logits.

    Raises:
        SpecError: There are too many combinations to enumerate.
        RunError: The gradient is not finite.
    """
    each, exact = _by_logits(loss, binary), Exact(law.forward)
    return _gradient(lambda rows: exact.expected(_rows(rows, binary), each), logits.detach())


def _estimates(
    choice: Estimator, logits: Tensor, loss: Loss, generator: torch.Generator, binary: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients with hard choices and, if there are any, with relaxed choices of the same draws."""
    each, before = _by_logits(loss, binary), generator.get_state()
    hard = _gradient(lambda rows: choice.expected(_rows(rows, binary), each, generator), logits).double()
    if not (isinstance(choice, Pathwise) and choice.relaxes):
        return hard, None
    generator.set_state(before)
    relaxed = _gradient(lambda rows: each(choice.sample(_rows(rows, binary), generator)[1]), logits)
    return hard, relaxed.double()


def _rows(logits: Tensor, binary: bool) -> Tensor:
    return two_categories(logits) if binary else logits


def _by_logits(loss: Loss, binary: bool) -> Loss:
    return (lambda choices: loss(choices[..., 0])) if binary else loss


def _gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    if not gradient.isfinite().all():
        raise RunError("a gradient is not finite", where="diagnose_estimator", remedy="check logits and loss")
    return gradient


def _chunks(total: int, chunk: int) -> Iterator[int]:
    for start in range(0, total, chunk):
        yield min(chunk, total - start)
