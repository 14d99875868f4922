"""A map of a classifier's answers: forget, retained and unseen examples as points in a plane, the same for every model.

The plane is that of the original's two main directions (principal components) of the logits. All models share it, so
that a point that moves has another answer. A logit counts relative to the mean of its example's logits, because only
differences of logits are answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.modules import evaluating
from expunge.core.problem import Problem
from expunge.train.evaluation import sample
from expunge.train.loop import in_order

EACH = 40
"""Most examples of each set."""
DIGITS = 2


@dataclass
class Cloud:
    """Coordinates of the examples, one model after the other; the first model gives the plane."""

    ids: Mapping[str, Tensor]
    """Ids of the examples by set; empty if the data have no classes."""
    places: list[list[list[float]]] = field(default_factory=list)
    centre: np.ndarray | None = None
    axes: np.ndarray | None = None

    @classmethod
    def of(cls, problem: Problem) -> Cloud:
        """The examples to show: of the forget set only those that no attack uses."""
        sets = {"forget": problem.unexposed, "retained": problem.retain, "unseen": problem.test}
        shown = {name: sample(ids, EACH, f"map {name}") for name, ids in sets.items()}
        return cls(shown if problem.data.has_classes else {})

    def add(self, model: nn.Module, problem: Problem) -> None:
        """Add a model's answers to the same examples."""
        if not self.ids:
            return
        ids = torch.cat(list(self.ids.values()))
        with evaluating(model), torch.no_grad():
            decided = [problem.objective.decisions(model, batch).logits for batch in in_order(problem.data, ids)]
        # A model of constant answers may return a parameter, which keeps its gradient here.
        values = torch.cat(decided).detach().cpu().double().numpy()
        values = values - values.mean(1, keepdims=True)
        if self.axes is None or self.centre is None:
            self.centre = values.mean(0)
            self.axes = _main_directions(values - self.centre)
        placed = (values - self.centre) @ self.axes
        self.places.append(np.nan_to_num(placed).round(DIGITS).tolist())

    def as_json(self) -> dict[str, Any]:
        """Number of examples of each set, in order, and for each model the coordinates `[examples, 2]`."""
        return {"sets": {name: len(ids) for name, ids in self.ids.items()}, "places": self.places}


def _main_directions(centred: np.ndarray) -> np.ndarray:
    """The two directions of largest variance as columns `[classes, 2]`; each points to where its largest entry is."""
    _, _, rows = np.linalg.svd(np.nan_to_num(centred), full_matrices=False)
    axes = np.zeros((centred.shape[1], 2))
    axes[:, : min(2, len(rows))] = rows[:2].T
    largest = axes[np.abs(axes).argmax(0), range(2)]
    return axes * np.where(largest < 0, -1.0, 1.0)
