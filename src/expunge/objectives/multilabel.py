"""Several yes-or-no labels per example: binary cross-entropy, and the share of right labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions
from expunge.core.objective import IGNORE, Deciding, wrong_width
from expunge.objectives._targets import require_decided, require_labels, require_whole


@dataclass(frozen=True)
class Multilabel(Deciding):
    """Targets are 0 or 1 `[n, k]`, outputs are logits `[b, k]`; each label of each example is one decision.

    A logit z becomes the two-class decision (0, z), whose cross-entropy is the binary cross-entropy of z.
    """

    count: Count | None = None
    """Number of labels; by default that of the data."""
    ignore: int = IGNORE
    """Target of a label that is not known."""

    def bound_to(self, data: Data) -> Self:
        """Check the targets, and take the number of labels from them."""
        if data.targets.ndim != 2 or data.targets.shape[1] != len(data.labels):
            raise SpecError(
                f"targets have shape {list(data.targets.shape)} for {len(data.labels)} labels",
                where="data.targets",
                allowed="one 0 or 1 per example and label, [n, k]",
            )
        require_whole(data.targets, "0 or 1")
        require_decided(data.targets, self.ignore)
        require_labels(data.targets, 2, self.ignore)
        return replace(self, count=len(data.labels))

    def default_labels(self, targets: Tensor) -> tuple[str, ...]:
        return tuple(str(label) for label in range(targets.shape[1] if targets.ndim == 2 else 0))

    @property
    def outputs(self) -> int:
        """The number of labels."""
        return self.count or 0

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Two-class logits (0, z) of every label that is known, example by example."""
        logits = self.prediction(model, batch)
        if logits.ndim != 2 or logits.shape[1] != self.outputs:
            raise wrong_width(model, logits, f"[batch, {self.outputs}]", self.outputs)
        targets = batch.targets.to(logits.device)
        decided = targets != self.ignore
        pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        return Decisions(pairs[decided], targets[decided], decided.nonzero()[:, 0])

    def questions(self, batch: Batch, decisions: Decisions) -> Tensor:
        """The label that each decision is about."""
        return (batch.targets != self.ignore).nonzero()[:, 1].to(decisions.targets.device)

    @property
    def question_count(self) -> int:
        """The number of labels."""
        return self.outputs

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every known label replaced by its opposite, which is its only wrong value."""
        targets = torch.where(batch.targets == self.ignore, batch.targets, 1 - batch.targets)
        return batch._replace(targets=targets)

    def per_decision(self, features: Tensor, batch: Batch) -> Tensor | None:
        """`None`: a layer has one row per example, not one per label."""
        return None
