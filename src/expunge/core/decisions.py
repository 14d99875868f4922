"""Decisions: one answer among several, with the right one; and what can be measured of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

OUTPUT_VALUES = 2**24
"""Most output values of a model that an evaluation holds at a time, unless one example has more: 64 MiB in float32."""


class Decisions(NamedTuple):
    """`n` decisions: logits `[n, c]`, the right answer of each `[n]`, and the row of its example in the batch `[n]`."""

    logits: Tensor
    targets: Tensor
    example: Tensor


def loss(decisions: Decisions) -> Tensor:
    """Mean cross-entropy over decisions, in nats."""
    return F.cross_entropy(decisions.logits, decisions.targets)


def decision_losses(decisions: Decisions) -> Tensor:
    """Cross-entropy of each decision, `[n]`, in nats."""
    logits, targets = decisions.logits, decisions.targets
    if torch.is_grad_enabled() or logits.numel() <= OUTPUT_VALUES:
        return F.cross_entropy(logits, targets, reduction="none")
    # Log-probabilities need as much memory as the logits, so a long text is judged a few positions at a time.
    rows = max(OUTPUT_VALUES // logits.shape[1], 1)
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.cat([F.cross_entropy(some, right, reduction="none") for some, right in parts])


def sampled(decisions: Decisions, generator: torch.Generator) -> Decisions:
    """The same decisions with targets that are drawn from the model's own prediction, without gradients.

    They are drawn on the CPU in double precision, so that they do not depend on device and dtype.
    """
    chances = decisions.logits.detach().cpu().double().softmax(1)
    drawn = torch.multinomial(chances, 1, generator=generator)[:, 0] if len(chances) else decisions.targets
    return decisions._replace(targets=drawn.to(decisions.targets.device))


def per_example(values: Tensor, example: Tensor, size: int, *, mean: bool = False) -> Tensor:
    """Sum (or mean) of each example's decisions.

    Args:
        values: One number per decision, `[n]`.
        example: Row of each decision's example in the batch, `[n]`.
        size: Number of examples in the batch.
        mean: Divide by each example's number of decisions.

    Returns:
        One number per example, `[size]`. For an example without decisions the sum is 0 and the mean is NaN.
    """
    total = torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, example, values)
    return total / torch.bincount(example, minlength=size) if mean else total


def mean_losses(decisions: Decisions, size: int) -> Tensor:
    """Mean cross-entropy of each example's decisions, `[size]` in float64, in nats."""
    return per_example(decision_losses(decisions).double(), decisions.example, size, mean=True)


def correct(decisions: Decisions) -> Tensor:
    """Whether the largest logit is the right one, per decision, `[n]` bool."""
    return decisions.logits.argmax(1) == decisions.targets


def share_right(decisions: Decisions, size: int) -> Tensor:
    """Share of each example's decisions that are right, `[size]` float64."""
    return per_example(correct(decisions).double(), decisions.example, size, mean=True)


def knows(decisions: Decisions, size: int) -> Tensor:
    """Whether an example has decisions and *all* of them are right, `[size]` bool.

    For a language model under teacher forcing this is the same as reciting the example by greedy decoding: both make
    their first wrong token at the same position.
    """
    wrong = per_example((~correct(decisions)).long(), decisions.example, size)
    return (wrong == 0) & (torch.bincount(decisions.example, minlength=size) > 0)


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """Mean over decisions of KL(reference || model) in nats, from logits `[n, c]`; a sum, not a mean, over classes."""
    return F.kl_div(F.log_softmax(logits, 1), F.log_softmax(reference, 1), reduction="batchmean", log_target=True)
