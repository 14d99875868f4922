"""Examples with several labels, where what is forgotten is one of these labels: the problem as a yes-or-no question.

A hidden layer has one row of features per example, and an example of several labels has several decisions. Audits that
read features ask for the forgotten label alone, so that each example has one decision again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.data import IGNORE, Batch
from expunge.core.decisions import Decisions
from expunge.core.objective import CLASSES, DECISIONS, Deciding, wrong_width
from expunge.core.problem import Problem
from expunge.objectives.multilabel import Multilabel


@dataclass(frozen=True)
class OneLabel(Deciding):
    """Targets are 0 or 1 `[n]`; of the logits `[b, count]`, that of one label counts."""

    provides: ClassVar[frozenset[str]] = frozenset({DECISIONS, CLASSES})

    label: int
    """The label's number."""
    count: int
    """Number of labels that the model answers."""

    @property
    def outputs(self) -> int:
        """The number of labels."""
        return self.count

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Two-class logits (0, z), one decision per example."""
        logits = self.prediction(model, batch)
        if logits.ndim != 2 or logits.shape[1] != self.count:
            raise wrong_width(model, logits, f"[batch, {self.count}]", self.count)
        chosen = logits[:, self.label]
        pairs = torch.stack([torch.zeros_like(chosen), chosen], dim=-1)
        return Decisions(pairs, batch.targets.to(logits.device), torch.arange(batch.size, device=logits.device))


def about_one_label(problem: Problem, where: str) -> Problem:
    """The problem as the question whether an example has the forgotten label, if its examples have several labels.

    Examples of which nobody knows whether they have it are left out of all sets. The forget set keeps its exposed part.

    Args:
        problem: The problem; returned as it is if its examples do not have several labels.
        where: Name of the audit, for the message.

    Raises:
        SpecError: The forget examples are about more than one label.
    """
    objective, targets = problem.objective, problem.data.targets
    if not isinstance(objective, Multilabel):
        return problem
    about = (targets[problem.forget] != objective.ignore).any(0).nonzero().flatten()
    if len(about) != 1:
        raise SpecError(
            f"the forget examples are about {len(about)} labels, and a layer has one row of features per example",
            where=where,
            allowed="forget examples of which one label is known, and the same for all",
            remedy="use a task such as object_removal, or leave the audit out",
        )
    label = int(about)
    one = OneLabel(label=label, count=objective.outputs, output=objective.output)
    names = f"no {problem.data.labels[label]}", problem.data.labels[label]
    known = targets[:, label] != objective.ignore
    asked = torch.where(known, targets[:, label], 0)
    data = replace(problem.data, targets=asked, labels=names, objective=one, cscore=None)
    sets = {name: _kept(getattr(problem, name), known) for name in ("retain", "test", "holdout", "corrupted")}
    true = None if problem.true_targets is None else problem.true_targets[:, label].where(known, torch.tensor(IGNORE))
    return replace(problem, data=data, objective=one, true_targets=true, **sets)


def _kept(ids: Tensor, known: Tensor) -> Tensor:
    return ids[known[ids]]
