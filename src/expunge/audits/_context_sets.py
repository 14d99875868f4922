"""Demonstrations and questions of an in-context audit: which examples they are. No model is needed to choose them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count, NonNegative
from expunge.core.contracts import Audit
from expunge.core.problem import Problem
from expunge.train.evaluation import sample

WHERE = "audit.in_context"
CANDIDATES = 64
"""Most candidates of each label, and times the demonstrations of questions."""


@dataclass(frozen=True)
class ContextSettings(Audit):
    """The settings of the audit that contexts depend on."""

    layer: str = ""
    """Path of the module whose output is read; by default the last hidden layer, the input of the last weights."""
    demonstrations: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Numbers of demonstrations; of a class, for each label."""
    dimension: Count | None = None
    """Directions of the hidden layer that are read, those with the largest variance first; by default one fewer than
    options, but at least 8."""
    ridge: NonNegative = 1.0
    """Penalty of the readout."""
    queries: Count = 200
    """Most examples of each set that are scored, a fixed random part."""
    labels: Count = 10
    """Most labels to choose from, the forgotten ones first; the others are a fixed random part."""


class ContextSets(NamedTuple):
    """Ids by use; they do not depend on the model."""

    candidates: list[Tensor]
    """Examples to demonstrate with: one list for each option label, or a single one."""
    queries: dict[str, Tensor]
    """Examples to answer, by split: `forget`, `test`, and `holdout` if there is one."""
    labels: Tensor
    """The labels that are options; empty if examples bring their own options."""


def sets_of(problem: Problem, part: ContextSettings) -> ContextSets:
    """Candidates and queries of a problem.

    Raises:
        SpecError: The forget set is no class, concept or person, or has fewer candidates than demonstrations.
    """
    sets = _class_sets(problem, part) if problem.data.has_classes else _choice_sets(problem, part)
    fewest, most = min(len(ids) for ids in sets.candidates), max(part.demonstrations)
    if fewest < most:
        usable = [n for n in part.demonstrations if n <= fewest]
        raise SpecError(
            f"{most} demonstrations are asked for, and there are {fewest} held-out examples to take them from",
            where=f"{WHERE}.demonstrations",
            allowed=f"at most {fewest}",
            remedy=f"set demonstrations = {usable or [fewest]}, or forget a larger set",
        )
    return sets


def _class_sets(problem: Problem, part: ContextSettings) -> ContextSets:
    targets = problem.data.targets
    forgotten = targets[problem.forget].unique()
    shared = forgotten[torch.isin(forgotten, targets[problem.retain])]
    if len(shared):
        name = problem.data.labels[int(shared[0])]
        raise _no_concept(f"label {name} is in the retain set, too")
    kept = problem.reference_train
    kept = kept[~torch.isin(problem.data.group_of(kept), problem.data.group_of(problem.unexposed))]
    others = targets[kept].unique()
    count = max(part.labels - len(forgotten), 1)
    labels = torch.cat([forgotten, sample(others, count, "in_context labels")]).sort().values
    candidates = [
        sample(pool[targets[pool] == label], CANDIDATES, "in_context")
        for label in labels
        for pool in [problem.exposed if label in forgotten else kept]
    ]
    queries = {"forget": problem.unexposed, "holdout": problem.holdout, "test": problem.test}
    own = {split: ids[torch.isin(targets[ids], labels)] for split, ids in queries.items()}
    return ContextSets(candidates, _sampled(own, part.queries), labels)


def _choice_sets(problem: Problem, part: ContextSettings) -> ContextSets:
    data = problem.data
    if data.choices is None or data.tokenizer is None:
        raise SpecError(
            "its examples have no labels, and no answers to choose from",
            where=WHERE,
            allowed="data with classes, or texts of multiple choice, such as people and factbook",
            remedy="leave the audit out",
        )
    groups = data.group_of(problem.forget)
    if data.groups is None or len(groups.unique()) == len(groups):
        raise _no_concept("each of its texts is a group of its own")
    if torch.isin(groups, data.group_of(problem.retain)).any():
        raise _no_concept("one of its groups is in the retain set, too")
    choices = data.choices

    def asked(ids: Tensor) -> Tensor:
        return ids[torch.tensor([choices[i] is not None for i in ids.tolist()], dtype=torch.bool)]

    queries = {"forget": problem.unexposed, "holdout": problem.holdout, "test": problem.test}
    candidates = sample(asked(problem.exposed), CANDIDATES * max(part.demonstrations), "in_context")
    own = _sampled({split: asked(ids) for split, ids in queries.items()}, part.queries)
    if "forget" not in own or "test" not in own:
        raise _no_concept("no text to forget, or no test text, has answers to choose from")
    return ContextSets([candidates], own, torch.empty(0, dtype=torch.int64))


def _sampled(queries: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    return {split: sample(ids, most, f"in_context {split}") for split, ids in queries.items() if len(ids)}


def _no_concept(finding: str) -> SpecError:
    return SpecError(
        f"the forget set is no class, concept or person: {finding}",
        where=WHERE,
        allowed="a task such as whole_class or people; on single examples the audit would measure their class",
        remedy="leave the audit out",
    )
