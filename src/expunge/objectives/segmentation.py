"""A class per pixel: cross-entropy over the pixels that are labelled, and the share of right pixels."""

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
from expunge.objectives._targets import drawn_wrong, labels_up_to, require_decided, require_labels, require_whole


@dataclass(frozen=True)
class Segmentation(Deciding):
    """Targets are classes `[n, h, w]`, outputs are logits `[b, c, h, w]`; each labelled pixel is one decision."""

    classes: Count | None = None
    """Number of classes; by default the number of labels of the data."""
    ignore: int = IGNORE
    """Target of a pixel without a label; 255 in many data sets."""

    def bound_to(self, data: Data) -> Self:
        """Check the masks, and take the number of classes from the labels."""
        if data.targets.ndim < 3:
            raise SpecError(
                f"targets have shape {list(data.targets.shape)}", where="data.targets", allowed="masks [n, h, w]"
            )
        require_whole(data.targets, "classes per pixel")
        require_decided(data.targets, self.ignore)
        require_labels(data.targets, len(data.labels), self.ignore)
        return replace(self, classes=len(data.labels) or None)

    def default_labels(self, targets: Tensor) -> tuple[str, ...]:
        return labels_up_to(targets, self.ignore)

    @property
    def outputs(self) -> int:
        """The number of classes, which is the number of output channels."""
        return self.classes or 0

    def output_size(self, targets: Tensor) -> int:
        """A logit per class at each pixel."""
        return max(targets[:1].numel() * self.outputs, 1)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Logits `[b, c, h, w]` against masks `[b, h, w]`, flattened to the labelled pixels."""
        logits, wanted = self.prediction(model, batch), (batch.size, self.outputs, *batch.targets.shape[1:])
        if logits.shape != wanted:
            raise wrong_width(model, logits, str(list(wanted)), self.outputs)
        targets = batch.targets.to(logits.device)
        decided = targets != self.ignore
        return Decisions(logits.movedim(1, -1)[decided], targets[decided], decided.nonzero()[:, 0])

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Each labelled pixel gets a uniformly drawn wrong class."""
        wrong = drawn_wrong(batch.targets, self.outputs, generator)
        return batch._replace(targets=torch.where(batch.targets == self.ignore, batch.targets, wrong))

    def per_decision(self, features: Tensor, batch: Batch) -> Tensor | None:
        """Features of labelled pixels, from `[b, d, h, w]` of the masks' size."""
        if features.ndim != batch.targets.ndim + 1 or features.shape[2:] != batch.targets.shape[1:]:
            return None
        return features.movedim(1, -1)[(batch.targets != self.ignore).to(features.device)]
