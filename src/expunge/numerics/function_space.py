"""Predict a classifier's answers under planned unlearning, with a linearised network and the exact loss.

Descent on the retain set and ascent on the forget set move weights by v <- beta v + g, w <- w - step v. If gradients of
the logits are constant, the logits move without the weights,

    f_i <- f_i - step V_i,    V_i <- beta V_i + sum_j u_j K_ij (softmax(f_j) - y_j),

with K_ij = <df_i/dw, df_j/dw>, `[c, c]`, and u_j = (1 - mix) / n over the retain set, -mix / n over the forget set.
Unlike in `stability`, no gradient is assumed to be zero: the softmax saturates as it does in the network. For a model
that is linear in its weights, and full batches, this is exact.

In a sample of m out of n examples, each example's effect on itself keeps its weight 1 / n, and the other sampled
examples represent the rest of the set. With 1 / m, the effect of an example on itself, by which it was learned by
heart, would count n / m times too much.

Cost: (m c)^2 operations per step, and the Gram matrix beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.numerics.linearised import Update, require_gram


@dataclass(frozen=True)
class Course:
    """The shares of known examples along the planned steps."""

    forget: Tensor
    """Share of the forget examples with the right answer, after 0, 1, ..., t steps, `[t + 1]`."""
    retain: Tensor
    """The same for the retain examples."""


def course(
    gram: Tensor,
    logits: Tensor,
    targets: Tensor,
    retained: int,
    update: Update,
    steps: int,
    *,
    until: float | None = None,
) -> Course:
    """Follow the logits of a sample.

    Args:
        gram: K, `[m c, m c]`, the logits of one example next to each other, the retain set's examples first.
        logits: Initial logits, `[m, c]`.
        targets: The classes of training, `[m]`; an example is known if its answer is this class.
        retained: Number of sampled retain examples.
        update: The plan; `size` is that of the whole sets, and batches count as full.
        steps: Largest number of steps.
        until: Stop once at most this share of the forget examples is known.

    Raises:
        SpecError: The shapes disagree, or one set has no examples.
    """
    count, classes = logits.shape
    require_gram(gram, classes)
    if len(gram) != count * classes or len(targets) != count or not 0 < retained < count:
        finding = (
            f"{retained} retained, logits {list(logits.shape)}, targets {list(targets.shape)}, Gram {list(gram.shape)}"
        )
        raise SpecError(finding, where="course", allowed="[m, c], [m] and [m c, m c], with examples of both sets")
    across, own = _weighted(gram.double(), count, retained, update)
    f, truth = logits.double(), F.one_hot(targets, classes).double()
    moved, known = torch.zeros_like(f), [_known(f, targets, retained)]
    for _ in range(steps):
        if until is not None and known[-1][1] <= until:
            break
        off = f.softmax(1) - truth
        pull = (across @ off.flatten()).view_as(f) + torch.einsum("icd,id->ic", own, off)
        moved = update.momentum * moved + pull
        f = f - update.step * moved
        known.append(_known(f, targets, retained))
    retain, forget = torch.tensor(known, dtype=torch.float64).T
    return Course(forget, retain)


def _weighted(gram: Tensor, count: int, retained: int, update: Update) -> tuple[Tensor, Tensor]:
    """K weighted by the acting examples, without the blocks of an example with itself; and these blocks `[m, c, c]`."""
    classes = len(gram) // count
    sides = (
        (retained, update.retain.size, 1 - update.ascent_weight),
        (count - retained, update.forget.size, -update.ascent_weight),
    )
    weights, first = torch.zeros(count, count).to(gram), 0
    own = torch.zeros(count).to(gram)
    for here, whole, weight in sides:
        part = slice(first, first + here)
        weights[:, part] = weight / here
        weights[part, part] = weight * (1 - 1 / whole) / max(here - 1, 1)
        own[part], first = weight / whole, first + here
    weights.fill_diagonal_(0)
    blocks = gram.view(count, classes, count, classes)
    each = torch.einsum("icid->icd", blocks) * own[:, None, None]
    return (blocks * weights[:, None, :, None]).reshape_as(gram), each


def _known(logits: Tensor, targets: Tensor, retained: int) -> tuple[float, float]:
    right = (logits.argmax(1) == targets).double()
    return float(right[:retained].mean()), float(right[retained:].mean())
