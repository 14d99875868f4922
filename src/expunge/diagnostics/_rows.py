"""Curvature of single examples as a Gram matrix: columns of G_i with G_i G_i^T the Gauss-Newton matrix of the loss.

For cross-entropy over c logits f this matrix is J^T (diag p - p p^T) J. It is positive semi-definite; the Hessian need
not be. Its columns are gradients of scalars, so `numerics.gram` computes their inner products without the columns:

- exact, for one decision per example: c - 1 functions <a, f> with sum a a^T = diag p - p p^T, from its eigenvectors;
- drawn, if there are too many classes, and for language models: k times the loss under labels drawn from the model's
  own prediction, divided by sqrt(k). The expected product is the same (the Fisher information). The k gradients of one
  example overlap by chance, so the example seems a little sharper than it is.

An example's loss is the mean over its decisions, here as elsewhere. A drawn loss is the sum divided by sqrt(decisions),
because labels that are drawn independently have no covariance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.case import Case
from expunge.core.data import Batch
from expunge.core.decisions import Decisions, decision_losses, per_example
from expunge.core.problem import Problem
from expunge.diagnostics._sample import BLOCK, Sample, about, affordable, gram_cost, sampled
from expunge.numerics.gram import Gram, gram
from expunge.numerics.linops import differentiable
from expunge.train.loop import in_order

NOTHING = -1
"""Padding: the label of a decision that an example does not have."""


class Rows(NamedTuple):
    """Examples, each with the function of its logits to differentiate."""

    inputs: Tensor
    targets: Tensor
    ids: Tensor
    aims: Tensor
    """Directions `[b, c]`, or drawn labels `[b, t]`, padded at the end with `NOTHING`."""
    scale: Tensor
    """Factor on a drawn loss, `[b]`."""

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.ids)


def rows_of(problem: Problem, most: int) -> int:
    """Columns per example: the number for the exact form if it is at most `most`, otherwise `most` drawn ones."""
    needed = len(problem.data.labels) - 1
    return max(needed, 1) if problem.data.has_classes and needed <= most else most


def sampled_within(
    case: Case, wanted: tuple[int, int], columns: int, epochs: float, generator: torch.Generator
) -> Sample:
    """As many of the wanted examples of each set as a Gram matrix with these columns per example may have.

    Raises:
        SpecError: The budget affords no example, or no parameter of the model takes a gradient.
        RunError: A loss is not finite.
    """
    sets = (case.problem.retain, case.problem.forget)
    most = min(wanted[0], len(sets[0])), min(wanted[1], len(sets[1]))
    two = sampled(case, 1, 1, generator)
    with about(case):
        # Two examples show whether every parameter has a product form.
        products = not gradient_gram(two).unsupported
    left = epochs * len(case.problem.train) - gram_cost(2, products=False)
    return sampled(case, *affordable(most, columns, left, products=products), generator)


def curvature_gram(sample: Sample, most: int, generator: torch.Generator) -> Gram:
    """Inner products of all columns of the sample, those of one example next to each other.

    Raises:
        SpecError: Parameters differ in dtype or device.
    """
    rows = rows_of(sample.problem, most)
    exact = sample.problem.data.has_classes and len(sample.problem.data.labels) - 1 <= most
    with torch.no_grad():
        parts = []
        for batch in in_order(sample.problem.data, sample.ids):
            decisions = sample.problem.objective.decisions(sample.model, batch)
            parts.append(_directions(decisions, rows) if exact else _drawn(decisions, batch.size, rows, generator))
    width = max(part.shape[2] for part in parts)
    aims = torch.cat([F.pad(part, (0, width - part.shape[2]), value=NOTHING) for part in parts]).flatten(0, 1)
    scale = torch.full((len(aims),), 1.0 if exact else rows**-0.5, dtype=torch.float64)
    again = sample.problem.data.batch(sample.ids.repeat_interleave(rows))
    examples = Rows(*again, aims, scale)
    return _gram(sample, examples)


def gradient_gram(sample: Sample) -> Gram:
    """Inner products of the gradients of the examples' own losses, each the sum divided by sqrt(decisions).

    Raises:
        SpecError: Parameters differ in dtype or device.
    """
    return _gram(sample, sample.problem.data.batch(sample.ids))


def logit_gram(sample: Sample) -> tuple[Gram, Tensor, Tensor]:
    """Inner products of the gradients of every logit of a classifier, those of one example next to each other.

    Returns:
        The Gram matrix `[m c, m c]`, the logits `[m, c]` and the targets `[m]`.

    Raises:
        SpecError: Parameters differ in dtype or device.
    """
    with torch.no_grad():
        parts = [
            sample.problem.objective.decisions(sample.model, batch)
            for batch in in_order(sample.problem.data, sample.ids)
        ]
    logits, targets = torch.cat([part.logits for part in parts]), torch.cat([part.targets for part in parts])
    count, classes = logits.shape
    aims = torch.eye(classes, dtype=torch.float64).repeat(count, 1)
    again = sample.problem.data.batch(sample.ids.repeat_interleave(classes))
    return _gram(sample, Rows(*again, aims, torch.ones(len(aims), dtype=torch.float64))), logits, targets


def _gram(sample: Sample, examples: Any) -> Gram:
    def losses(model: nn.Module, batch: Batch | Rows) -> Tensor:
        decisions = sample.problem.objective.decisions(model, batch)  # type: ignore[arg-type]
        if isinstance(batch, Batch):
            return _summed(decisions, decisions.targets, batch.size)
        if batch.aims.is_floating_point():
            return (decisions.logits * batch.aims.to(decisions.logits)).sum(1)
        labels = batch.aims[batch.aims != NOTHING].to(decisions.targets)
        return batch.scale.to(decisions.logits) * _summed(decisions, labels, batch.size)

    return gram(losses, sample.model, differentiable(sample.model), examples, block=BLOCK)


def _summed(decisions: Decisions, labels: Tensor, size: int) -> Tensor:
    total = per_example(decision_losses(decisions._replace(targets=labels)), decisions.example, size)
    return total / torch.bincount(decisions.example, minlength=size).to(total).sqrt()


def _directions(decisions: Decisions, rows: int) -> Tensor:
    """`[b, rows, c]`: eigenvectors of diag p - p p^T, each times the square root of its eigenvalue."""
    p = decisions.logits.double().softmax(1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None])
    # The constant vector has the eigenvalue 0 and is left out.
    directions: Tensor = (vectors * values.clamp(min=0).sqrt()[:, None]).mT[:, -rows:]
    return directions


def _drawn(decisions: Decisions, size: int, rows: int, generator: torch.Generator) -> Tensor:
    """`[b, rows, t]`: labels of every decision, drawn from the model's prediction; on the CPU on every device."""
    chances = decisions.logits.cpu().double().softmax(1)
    labels = torch.multinomial(chances, rows, replacement=True, generator=generator)
    counts = torch.bincount(decisions.example.cpu(), minlength=size)
    each = [part.T for part in labels.split(counts.tolist())]
    width = int(counts.max())
    return torch.stack([F.pad(part, (0, width - part.shape[1]), value=NOTHING) for part in each])
