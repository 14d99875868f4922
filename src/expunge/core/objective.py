"""The one place that knows classifiers from language models: a model and a batch become decisions.

A classifier makes one decision per example, a language model one per token that is not ignored. Everything else in the
library - losses, attacks, audits - is written over decisions and so serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.core.example_ids import example_ids
from expunge.core.modules import first_parameter

if TYPE_CHECKING:
    from expunge.core.data import Batch, Data


class Decisions(NamedTuple):
    """`n` decisions: logits `[n, c]`, the right answer of each `[n]`, and the row of the batch it belongs to `[n]`."""

    logits: Tensor
    targets: Tensor
    example: Tensor


class Objective(Protocol):
    """How a model's outputs become decisions."""

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """The decisions that the model makes on a batch, with gradients where enabled."""
        ...

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with each target that is a decision replaced by a uniformly drawn *wrong* one."""
        ...


class Classification:
    """One decision per example.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Logits `[b, c]` against targets `[b]`."""
        logits = _forward(model, batch)
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise _wrong_width(model, logits, f"[batch, {self.classes}]", self.classes)
        return Decisions(logits, batch.targets.to(logits.device), torch.arange(batch.size, device=logits.device))

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Targets drawn uniformly over the wrong classes (2505.22310, random relabelling)."""
        shift = torch.randint(1, self.classes, batch.targets.shape, generator=generator)
        return batch._replace(targets=(batch.targets + shift) % self.classes)


class LanguageModelling:
    """One decision per token that is not ignored: the next token, given all before it.

    Args:
        vocabulary: Number of tokens.
        ignore: Target that marks a position without decision.
    """

    def __init__(self, vocabulary: int, ignore: int = -100) -> None:
        self.vocabulary, self.ignore = vocabulary, ignore

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Logits `[b, t, v]` against targets `[b, t]`, flattened to the positions that are decisions."""
        logits = _forward(model, batch)
        if logits.ndim != 3 or logits.shape[2] != self.vocabulary:
            raise _wrong_width(model, logits, f"[batch, tokens, {self.vocabulary}]", self.vocabulary)
        targets = batch.targets.to(logits.device)
        decided = targets != self.ignore
        return Decisions(logits[decided], targets[decided], decided.nonzero()[:, 0])

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Each decided token replaced by a uniformly drawn wrong one."""
        shift = torch.randint(1, self.vocabulary, batch.targets.shape, generator=generator)
        wrong = (batch.targets + shift) % self.vocabulary
        return batch._replace(targets=torch.where(batch.targets == self.ignore, batch.targets, wrong))


def infer_objective(data: Data) -> Objective:
    """The objective that fits the data's kind."""
    if data.kind == "tokens":
        return LanguageModelling(len(data.labels))
    return Classification(len(data.labels))


def loss(decisions: Decisions) -> Tensor:
    """Mean cross-entropy over decisions, in nats."""
    return F.cross_entropy(decisions.logits, decisions.targets)


def decision_losses(decisions: Decisions) -> Tensor:
    """Cross-entropy of each decision, `[n]`, in nats."""
    return F.cross_entropy(decisions.logits, decisions.targets, reduction="none")


def per_example(values: Tensor, example: Tensor, size: int, *, mean: bool = False) -> Tensor:
    """Sum (or mean) of each example's decisions.

    Args:
        values: One number per decision, `[n]`.
        example: Row of the batch that each decision belongs to, `[n]`.
        size: Number of examples in the batch.
        mean: Divide by each example's number of decisions.

    Returns:
        One number per example, `[size]`; an example without decisions has the sum 0 and no mean, NaN.
    """
    total = torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, example, values)
    return total / torch.bincount(example, minlength=size) if mean else total


def correct(decisions: Decisions) -> Tensor:
    """Whether the largest logit is the right one, per decision, `[n]` bool."""
    return decisions.logits.argmax(1) == decisions.targets


def knows(decisions: Decisions, size: int) -> Tensor:
    """Whether *all* decisions of an example are right, and there are any, `[size]` bool.

    For a language model under teacher forcing this is the same as reciting the example by greedy decoding: the first
    wrong token of either is the same one.
    """
    wrong = per_example((~correct(decisions)).long(), decisions.example, size)
    return (wrong == 0) & (torch.bincount(decisions.example, minlength=size) > 0)


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """Mean over decisions of KL(reference || model) in nats, from logits `[n, c]`; a sum, not a mean, over classes."""
    return F.kl_div(F.log_softmax(logits, 1), F.log_softmax(reference, 1), reduction="batchmean", log_target=True)


def _forward(model: nn.Module, batch: Batch) -> Tensor:
    place = first_parameter(model)
    inputs = batch.inputs.to(place.device)
    if inputs.is_floating_point():
        inputs = inputs.to(place.dtype)
    with example_ids(batch.ids):
        output = model(inputs)
    # Hugging Face models return an object that carries the logits.
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _wrong_width(model: nn.Module, logits: Tensor, wanted: str, width: int) -> SpecError:
    return SpecError(
        f"the model's output has shape {list(logits.shape)}",
        where=f"model ({type(model).__name__})",
        allowed=wanted,
        remedy=f"its last layer must have {width} outputs, one per label of the data",
    )
