"""Would an attacker who sees the model's losses say that a forget example was trained on?

Retained examples are members, unseen ones are not. From as many of each an attack is fitted on one number per example,
its mean cross-entropy l over decisions (for a classifier -log of the true class' probability), and then asked about the
unexposed forget set:

    loss         a member where l < t, with the threshold t of best balanced accuracy         (after 1709.01604)
    confidence   a member where a support vector machine (RBF, C = 3, gamma = 1) on exp(-l) says so   (2304.04934)
    regression   the probability of a member by logistic regression on l        (the starting kit of NeurIPS 2023)

A value is 1 (or close to it) for "was trained on": more means *knows more*. It is judged by the gap to retrained
models, not by 0.5 or 0: a chosen forget set is harder or easier than unseen data, so that even a model which never saw
it has it called unseen more or less often. Where original and retrained model do not differ, the audit has no power and
says so.

Where this differs from published code: the starting kit fits on forget against test examples, of which an example with
*too high* a loss is told apart as well, so that its score has no direction; with members from the retain set it has
one. The papers' MIA-confidence is the share called *unseen*, one minus the value here. References train without
undiscovered corruption, so that it is left out of the members.

Retained and unseen examples are scored too, each by an attack that was fitted without its fold: these are the true and
the false positive rate, which show whether the attack sees anything at all. Sequences that were planted in a text are
held against unseen ones made in the same way; both are unlike the retained text, so that there these two rates say as
much about the kind of text as about training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import Tensor, nn

from expunge.audits._evaluate import sample
from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.problem import Problem
from expunge.evidence.intervals import Floats, Ints
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import losses

Attack = Callable[[Floats, Floats], Callable[[Floats], Floats]]
"""Losses of members and of others, each `[n]` -> losses of anyone to how much they look like a member's."""


@dataclass(frozen=True)
class Membership(Audit):
    """Membership inference from losses; several entries of a spec need different attacks."""

    cite: ClassVar[str] = "jia2023sparse"

    attack: Literal["loss", "confidence", "regression"] = "regression"
    """How a member is told from others; the metric is called `membership_` and this."""
    count: Count = 1000
    """Members, and as many others, that the attack is fitted on: a fixed random part."""
    folds: Count = 5
    """Parts in which members and others are scored by what was fitted on the rest; at least 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2:
            raise SpecError(f"found {self.folds}", where="folds", allowed="2 or more")

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Per example how much it looks like a member: a decision, 0 or 1, or a probability.

        Raises:
            SpecError: There are fewer than two members, or fewer than two unseen examples.
        """
        problem, attack = case.problem, ATTACKS[self.attack]
        members, others, split = self._known(problem)
        seen, unseen, forget = (losses(model, problem, ids) for ids in (members, others, problem.unexposed))
        if not np.isfinite(np.concatenate([seen, unseen, forget])).all():
            attack = _undefined
        groups = [problem.data.group_of(ids).numpy() for ids in (members, others)]
        rates = crossfitted(attack, seen, unseen, self.folds, groups[0], groups[1])
        entries: list[tuple[str, Tensor, Floats, Role]] = [
            ("forget", problem.unexposed, attack(seen, unseen)(forget), "knowledge"),
            ("retain", members, rates[0], "description"),
            (split, others, rates[1], "description"),
        ]
        return [self._scores(problem, *entry) for entry in entries]

    def _scores(self, problem: Problem, split: str, ids: Tensor, values: Floats, role: Role) -> Scores:
        group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
        return Scores(f"membership_{self.attack}", split, values, ids.numpy(), role, "share", "reference", group=group)

    def _known(self, problem: Problem) -> tuple[Tensor, Tensor, str]:
        """Members, others, and the split that the others are: as many of each, no relatives across."""
        group_of = problem.data.group_of
        split = "holdout" if problem.data.has_tokens and len(problem.holdout) else "test"
        others: Tensor = getattr(problem, split)
        # Not to fit on a copy of what is asked later; and who has a copy that was trained on counts as a member.
        members = problem.reference_train
        members = members[~torch.isin(group_of(members), group_of(problem.unexposed))]
        others = others[~torch.isin(group_of(others), group_of(problem.train))]
        size = min(self.count, len(members), len(others))
        if size < 2:
            raise SpecError(
                f"found {len(members)} members and {len(others)} unseen examples without a copy among them",
                where="audit.membership",
                allowed="at least 2 of each",
            )
        return sample(members, size, "members"), sample(others, size, "others"), split


def crossfitted(
    attack: Attack, members: Floats, others: Floats, folds: int, member_group: Ints, other_group: Ints
) -> tuple[Floats, Floats]:
    """What the attack says of members and others that it was not fitted on.

    Args:
        attack: How it is fitted.
        members: Their losses, `[n]`.
        others: Their losses, `[m]`.
        folds: Parts, fewer where there are fewer examples; each has members and others.
        member_group: Copies share a number and are never split, `[n]`.
        other_group: Likewise, `[m]`.

    Returns:
        How much members `[n]` and others `[m]` look like members; all 0.5 where copies leave a single part.
    """
    parts = [_folds(group, folds) for group in (member_group, other_group)]
    count = min(int(part.max()) + 1 for part in parts)
    results = np.full(len(members), 0.5), np.full(len(others), 0.5)
    for fold in range(count if count > 1 else 0):
        held = [part % count == fold for part in parts]
        say = attack(members[~held[0]], others[~held[1]])
        for result, values, own in zip(results, (members, others), held, strict=True):
            result[own] = say(values[own])
    return results


def _folds(group: Ints, folds: int) -> Ints:
    """Fold of each example: groups in a fixed random order, dealt out one by one."""
    names, codes = np.unique(group, return_inverse=True)
    order = np.random.default_rng(derive(0, "membership folds")).permutation(names.size)
    found: Ints = (order % folds)[codes].astype(np.int64)
    return found


def by_loss(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """A member where the loss lies below the threshold of best balanced accuracy, the lowest among equals."""
    losses = np.concatenate([members, others])
    worth = np.concatenate([np.full(members.size, 1 / members.size), np.full(others.size, -1 / others.size)])
    values, codes = np.unique(losses, return_inverse=True)
    # Gain of calling everything up to each value a member: its share of members less its share of others.
    gain = np.concatenate([[0.0], np.cumsum(np.bincount(codes, weights=worth, minlength=values.size))])
    best = int(np.argmax(np.round(gain, 12)))
    ends = np.concatenate([[-np.inf], values, [np.inf]])
    threshold = ends[best] if best == values.size else (ends[best] + ends[best + 1]) / 2
    return lambda asked: (asked <= threshold).astype(np.float64)


def by_confidence(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """A support vector machine with the settings of published code, on the probability of the truth."""
    # Not that it draws anything for decisions, but without a state it takes one from the global generator.
    machine = SVC(C=3.0, gamma="auto", kernel="rbf", random_state=0).fit(*_labelled(np.exp(-members), np.exp(-others)))
    return lambda asked: machine.predict(np.exp(-asked)[:, None]).astype(np.float64)


def by_regression(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """Logistic regression on the loss in units of its spread, so that its penalty does not depend on the scale."""
    pooled = np.concatenate([members, others])
    middle, spread = float(pooled.mean()), float(pooled.std()) or 1.0
    model = LogisticRegression().fit(*_labelled((members - middle) / spread, (others - middle) / spread))
    return lambda asked: model.predict_proba((asked - middle)[:, None] / spread)[:, 1].astype(np.float64)


ATTACKS: dict[str, Attack] = {"loss": by_loss, "confidence": by_confidence, "regression": by_regression}


def _undefined(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """What can be said of a model without finite losses: nothing, which a verdict counts neither way."""
    return lambda asked: np.full(asked.size, np.nan)


def _labelled(members: Floats, others: Floats) -> tuple[Floats, Ints]:
    features = np.concatenate([members, others])[:, None]
    return features, np.concatenate([np.ones(members.size, np.int64), np.zeros(others.size, np.int64)])
