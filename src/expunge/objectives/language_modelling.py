"""The next token at every position that is not ignored: cross-entropy, next-token accuracy, exact recitation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.data import Batch, Data
from expunge.core.objective import (
    DECISIONS,
    IGNORE,
    RELABEL,
    TOKENS,
    Deciding,
    Decisions,
    Metric,
    knows,
    share_right,
    wrong_width,
)
from expunge.core.texts import refuse_shifted
from expunge.objectives._targets import drawn_wrong, labels_up_to, require_decided, require_labels, require_whole


@dataclass(frozen=True)
class LanguageModelling(Deciding):
    """Targets are the next token at each position `[n, t]`, outputs are logits `[b, t, v]`.

    Accuracy is the share of right next tokens. Recitation is 1 if all of an example's tokens are right. Under teacher
    forcing this equals exact greedy completion of the prompt.
    """

    provides: ClassVar[frozenset[str]] = frozenset({DECISIONS, TOKENS, RELABEL})
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", utility=True), Metric("recitation", knowledge=True))

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
        logits = self.prediction(model, batch)
        if logits.ndim != 3 or logits.shape[2] != self.outputs:
            raise wrong_width(model, logits, f"[batch, tokens, {self.outputs}]", self.outputs)
        targets = batch.targets.to(logits.device)
        decided = targets != self.ignore
        return Decisions(logits[decided], targets[decided], decided.nonzero()[:, 0])

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Share of right tokens, and whether all are right, per example."""
        decisions = self.decisions(model, batch)
        return {
            "accuracy": share_right(decisions, batch.size),
            "recitation": knows(decisions, batch.size).double(),
        }

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Each decided token replaced by a uniformly drawn wrong one."""
        wrong = drawn_wrong(batch.targets, self.outputs, generator)
        return batch._replace(targets=torch.where(batch.targets == self.ignore, batch.targets, wrong))

    def per_decision(self, features: Tensor, batch: Batch) -> Tensor | None:
        """Features at decided positions, from `[b, t, ...]`."""
        decided = (batch.targets != self.ignore).to(features.device)
        return features[decided] if features.ndim >= 3 and features.shape[:2] == decided.shape else None
