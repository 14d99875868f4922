"""One class per example: cross-entropy, and accuracy as knowledge and utility."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions
from expunge.core.objective import CLASSES, DECISIONS, RELABEL, Deciding, wrong_width
from expunge.objectives._targets import labels_up_to, require_labels, require_whole


@dataclass(frozen=True)
class Classification(Deciding):
    """Targets are class indices `[n]`, outputs are logits `[b, c]`."""

    provides: ClassVar[frozenset[str]] = frozenset({DECISIONS, CLASSES, RELABEL})

    classes: Count | None = None
    """Number of classes; by default the number of labels of the data."""

    def bound_to(self, data: Data) -> Self:
        """Check the targets, and take the number of classes from the labels."""
        if data.targets.ndim != 1:
            raise SpecError(
                f"targets have shape {list(data.targets.shape)}",
                where="data.targets",
                allowed="one class per example, [n]",
            )
        require_whole(data.targets, "class indices")
        require_labels(data.targets, len(data.labels))
        return replace(self, classes=len(data.labels) or None)

    def default_labels(self, targets: Tensor) -> tuple[str, ...]:
        return labels_up_to(targets)

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return self.classes or 0

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Logits `[b, c]` against targets `[b]`."""
        logits = self.prediction(model, batch)
        if logits.ndim != 2 or logits.shape[1] != self.outputs:
            raise wrong_width(model, logits, f"[batch, {self.outputs}]", self.outputs)
        return Decisions(logits, batch.targets.to(logits.device), torch.arange(batch.size, device=logits.device))

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Targets drawn uniformly over the wrong classes (2505.22310, random relabelling)."""
        shift = torch.randint(1, self.outputs, batch.targets.shape, generator=generator)
        return batch._replace(targets=(batch.targets + shift) % self.outputs)
