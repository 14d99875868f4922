"""The next token at every position that is not ignored: cross-entropy, and four measures of what is known of a text.

Knowledge is graded, because one wrong token is not forgetting. `accuracy` is the share of right next tokens;
`answer_probability` the geometric mean of the right tokens' probabilities, the inverse of perplexity; `recited_prefix`
the share of a text before the first wrong token; `recitation` is 1 if all tokens are right. `erased` depends on
`accuracy` and `recitation`. What was retained counts as utility, beside unseen text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.answers import AnswerRates
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions, correct, knows, mean_losses, per_example, share_right
from expunge.core.forward import output_of
from expunge.core.objective import DECISIONS, IGNORE, RELABEL, TOKENS, Deciding, Metric, wrong_width
from expunge.core.positions import chooses_positions
from expunge.core.texts import refuse_shifted
from expunge.objectives._targets import drawn_wrong, labels_up_to, require_decided, require_labels, require_whole


@dataclass(frozen=True)
class LanguageModelling(Deciding):
    """Targets are the next token at each position `[n, t]`, outputs are logits `[b, t, v]`.

    Under teacher forcing, recitation equals exact greedy completion of the prompt. The recited prefix is what greedy
    completion has right before its first wrong token.
    """

    provides: ClassVar[frozenset[str]] = frozenset({DECISIONS, TOKENS, RELABEL})
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", knowledge=True, utility=True, utility_on=("test", "retain")),
        Metric("answer_probability", knowledge=True, required=False),
        Metric("recited_prefix", knowledge=True, required=False),
        Metric("recitation", knowledge=True, utility=True, utility_on=("retain",)),
    )

    vocabulary: Count | None = None
    """Number of tokens; by default the number of labels of the data, and without labels the largest target plus 1."""
    ignore: int = IGNORE
    """Target of a position that is not a decision."""

    def bound_to(self, data: Data) -> Self:
        """Check the targets, and take the size of the vocabulary from the labels."""
        shape = list(data.targets.shape)
        inputs = data.inputs.shape[:2] if isinstance(data.inputs, Tensor) else data.targets.shape
        if data.targets.ndim != 2 or data.targets.shape != inputs:
            raise SpecError(
                f"targets have shape {shape}, inputs {list(inputs)}",
                where="data.targets",
                allowed="one target per token, [n, t]",
            )
        if self.vocabulary and data.labels and self.vocabulary != len(data.labels):
            raise SpecError(
                f"vocabulary is {self.vocabulary}, the data have {len(data.labels)} labels",
                where="objective.vocabulary",
                allowed="the number of labels",
                remedy="leave out `vocabulary`, or give the data as many labels",
            )
        require_whole(data.targets, "tokens")
        require_decided(data.targets, self.ignore)
        require_labels(data.targets, len(data.labels), self.ignore)
        for ids in (data.train, data.test) if isinstance(data.inputs, Tensor) else ():
            refuse_shifted(data.inputs[ids], data.targets[ids], self.ignore)
        return replace(self, vocabulary=len(data.labels) or None)

    def default_labels(self, targets: Tensor) -> tuple[str, ...]:
        return tuple(map(str, range(self.vocabulary))) if self.vocabulary else labels_up_to(targets, self.ignore)

    @property
    def outputs(self) -> int:
        """The size of the vocabulary."""
        return self.vocabulary or 0

    def output_size(self, targets: Tensor) -> int:
        """A logit per token of the vocabulary at each position."""
        return max(targets[:1].numel() * self.outputs, 1)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Logits `[b, t, v]` against targets `[b, t]`, flattened to the positions that are decisions."""
        decided = batch.targets != self.ignore
        # An objective with another `prediction` may need all positions.
        chosen = type(self).prediction is Deciding.prediction and chooses_positions(model) and not decided.all()
        at = (lambda part: part.targets != self.ignore) if chosen else None
        logits = output_of(model, batch, self.output, at) if chosen else self.prediction(model, batch)
        if logits.ndim != (2 if chosen else 3) or logits.shape[-1] != self.outputs:
            raise wrong_width(model, logits, f"[batch, tokens, {self.outputs}]", self.outputs)
        targets, decided = batch.targets.to(logits.device), decided.to(logits.device)
        rows = logits if chosen else logits[decided]
        return Decisions(rows, targets[decided], decided.nonzero()[:, 0])

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Share of right tokens, their geometric mean probability, the recited prefix, and recitation, per example."""
        decisions = self.decisions(model, batch)
        return {
            "accuracy": share_right(decisions, batch.size),
            "answer_probability": (-mean_losses(decisions, batch.size)).exp(),
            "recited_prefix": leading(correct(decisions).double(), decisions.example, batch.size),
            "recitation": knows(decisions, batch.size).double(),
        }

    def baseline(self, model: nn.Module, batch: Batch, answers: AnswerRates) -> dict[str, Tensor]:
        """What tokens that do not depend on the context would have: the rates at which they are given where wrong."""
        # Logits are not needed, and a forward pass would be half of an evaluation's time.
        decided = batch.targets != self.ignore
        targets, example, size = batch.targets[decided], decided.nonzero()[:, 0].cpu(), batch.size
        rates, probability = answers.rates(targets, torch.zeros_like(targets))
        return {
            "accuracy": per_example(rates, example, size, mean=True),
            "answer_probability": per_example(probability.log(), example, size, mean=True).exp(),
            "recited_prefix": leading(rates, example, size),
            "recitation": per_example(rates.log(), example, size).exp(),
        }

    def by_label(self, model: nn.Module, batch: Batch) -> None:
        """`None`: tokens are no labels of examples."""
        return

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Each decided token replaced by a uniformly drawn wrong one."""
        wrong = drawn_wrong(batch.targets, self.outputs, generator)
        return batch._replace(targets=torch.where(batch.targets == self.ignore, batch.targets, wrong))

    def per_decision(self, features: Tensor, batch: Batch) -> Tensor | None:
        """Features at decided positions, from `[b, t, ...]`."""
        decided = (batch.targets != self.ignore).to(features.device)
        return features[decided] if features.ndim >= 3 and features.shape[:2] == decided.shape else None


def leading(right: Tensor, example: Tensor, size: int) -> Tensor:
    """Expected share of each example's decisions before its first wrong one.

    Args:
        right: Probability that each decision is right, or 0 and 1, `[n]`; decisions of an example in their order.
        example: Row of each decision's example, `[n]`, in increasing order.
        size: Number of examples.

    Returns:
        `[size]` float64.
    """
    counts = torch.bincount(example, minlength=size)
    padded = torch.zeros(size, int(counts.max()), dtype=torch.float64, device=right.device)
    place = torch.arange(len(example), device=right.device) - (counts.cumsum(0) - counts)[example]
    padded[example, place] = right.double()
    return padded.cumprod(1).sum(1) / counts
