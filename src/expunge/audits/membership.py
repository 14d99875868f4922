"""Would an attacker who sees the model's losses conclude that a forget example was trained on?

Retained examples are members; unseen examples are non-members. The attack is fitted on as many of each, from one number
per example: its mean cross-entropy l over decisions (for a classifier -log of the true class' probability). Then it
classifies the unexposed forget set:

    loss         a member if l < t, with the threshold t of best balanced accuracy           (after 1709.01604)
    confidence   a member by a support vector machine (RBF, C = 3, gamma = 1) on exp(-l)           (2304.04934)
    regression   the probability of a member by logistic regression on l     (the starting kit of NeurIPS 2023)
    rank         the share of non-members with a larger l, ties by half: the mean is the area under the ROC curve

For texts, `score` may replace l: Min-K %, Min-K %++ and zlib (`train/membership_scores.py`). They ask how likely a
text's least likely tokens are, or how likely the text is for its size, so that a simple text is not taken for a member.

A value close to 1 means "was trained on": more means *knows more*. It is judged by the gap to retrained models, not by
0.5 or 0: a chosen forget set is harder or easier than unseen data, so the attack classifies it as unseen more or less
often, even for a model that never saw it. If original and retrained model do not differ, the audit has no power, and
the verdict says so.

Where this differs from published code: the starting kit fits on forget against test examples. It also detects an
example with *too high* a loss, so its score has no direction; with members from the retain set it has one. The papers'
MIA-confidence is the share classified as *unseen*, one minus the value here. References train without undiscovered
corruption, so the members do not include it.

Retained and unseen examples are scored too, each by an attack that was fitted without its fold. These are the true and
the false positive rate, which show whether the attack detects anything at all. Planted sequences of a text are compared
with unseen sequences of the same kind. Both differ from the retained text, so there these two rates depend on the kind
of text as much as on training.
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

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.problem import Problem
from expunge.evidence.intervals import Floats, Ints
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import losses, sample
from expunge.train.membership_scores import Score, membership_scores, ranks

Attack = Callable[[Floats, Floats], Callable[[Floats], Floats]]
"""Fits on losses of members and of non-members, `[n]` each; returns a function from losses to membership scores."""


@dataclass(frozen=True)
class Membership(Audit):
    """Membership inference from losses; if a spec has several entries, their attacks must differ."""

    cite: ClassVar[tuple[str, ...]] = ("jia2023sparse", "shi2024detecting", "zhang2025mink", "carlini2021extracting")

    attack: Literal["loss", "confidence", "regression", "rank"] = "regression"
    """How the attack recognises members; the metric's name is `membership_` plus this, and plus another score."""
    score: Score = "loss"
    """What it sees of an example: its `loss`; of texts also `min_k`, `min_k_plus` or `zlib`."""
    count: Count = 1000
    """Members, and as many non-members, that the attack is fitted on: a fixed random part."""
    folds: Count = 5
    """Cross-fitting folds, at least 2: each fold of members and non-members is scored by a fit to the other folds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2:
            raise SpecError(f"found {self.folds}", where="folds", allowed="2 or more")

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The membership score of each example: a decision, 0 or 1, or a probability.

        Raises:
            SpecError: There are fewer than two members, or fewer than two unseen examples; the score is of texts, and
                the data are none.
        """
        problem, attack = case.problem, ATTACKS[self.attack]
        members, others, split = self._known(problem)
        seen, unseen, forget = (self._seen(model, problem, ids) for ids in (members, others, problem.unexposed))
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

    def _seen(self, model: nn.Module, problem: Problem, ids: Tensor) -> Floats:
        if self.score == "loss":
            return losses(model, problem, ids)
        return membership_scores(model, problem, ids, self.score)

    def _scores(self, problem: Problem, split: str, ids: Tensor, values: Floats, role: Role) -> Scores:
        group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
        metric = f"membership_{self.attack}" + ("" if self.score == "loss" else f"_{self.score}")
        return Scores(metric, split, values, ids.numpy(), role, "share", "reference", group=group)

    def _known(self, problem: Problem) -> tuple[Tensor, Tensor, str]:
        """Members, as many non-members, and the split of the non-members; no group is on both sides."""
        group_of = problem.data.group_of
        split = "holdout" if problem.data.has_tokens and len(problem.holdout) else "test"
        others: Tensor = getattr(problem, split)
        # No member is a copy of a scored example; an unseen example with a copy in the training set is no non-member.
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
    """Membership scores of members and non-members, each from an attack that was not fitted on it.

    Args:
        attack: Fits the attack.
        members: Losses of members, `[n]`.
        others: Losses of non-members, `[m]`.
        folds: Number of folds, fewer if there are fewer groups; each has members and non-members.
        member_group: Groups of the members, `[n]`; a group is never split.
        other_group: Groups of the non-members, `[m]`.

    Returns:
        Scores of members `[n]` and of non-members `[m]`; all 0.5 if there is only one fold.
    """
    parts = [_folds(group, folds) for group in (member_group, other_group)]
    count = min(int(part.max()) + 1 for part in parts)
    results = np.full(len(members), 0.5), np.full(len(others), 0.5)
    for fold in range(count if count > 1 else 0):
        held_out = [part % count == fold for part in parts]
        score = attack(members[~held_out[0]], others[~held_out[1]])
        for result, values, own in zip(results, (members, others), held_out, strict=True):
            result[own] = score(values[own])
    return results


def _folds(group: Ints, folds: int) -> Ints:
    """Fold of each example: groups in a fixed random order, assigned to the folds in turn."""
    names, codes = np.unique(group, return_inverse=True)
    order = np.random.default_rng(derive(0, "membership folds")).permutation(names.size)
    assigned: Ints = (order % folds)[codes].astype(np.int64)
    return assigned


def by_loss(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """A member if the loss is at most the threshold of best balanced accuracy; of equal thresholds, the lowest."""
    losses = np.concatenate([members, others])
    worth = np.concatenate([np.full(members.size, 1 / members.size), np.full(others.size, -1 / others.size)])
    values, codes = np.unique(losses, return_inverse=True)
    # Gain if everything up to each value counts as a member: the share of members minus the share of non-members.
    gain = np.concatenate([[0.0], np.cumsum(np.bincount(codes, weights=worth, minlength=values.size))])
    best = int(np.argmax(np.round(gain, 12)))
    ends = np.concatenate([[-np.inf], values, [np.inf]])
    threshold = ends[best] if best == values.size else (ends[best] + ends[best + 1]) / 2
    return lambda losses_to_score: (losses_to_score <= threshold).astype(np.float64)


def by_confidence(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """A support vector machine with the settings of published code, on the probability of the true class."""
    # Decisions need no random numbers, but without a state the machine takes one from the global generator.
    machine = SVC(C=3.0, gamma="auto", kernel="rbf", random_state=0).fit(*_labelled(np.exp(-members), np.exp(-others)))
    return lambda values: machine.predict(np.exp(-values)[:, None]).astype(np.float64)


def by_regression(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """Logistic regression on the standardised loss, so that the penalty does not depend on the scale."""
    pooled = np.concatenate([members, others])
    middle, spread = float(pooled.mean()), float(pooled.std()) or 1.0
    model = LogisticRegression().fit(*_labelled((members - middle) / spread, (others - middle) / spread))
    return lambda values: model.predict_proba((values - middle)[:, None] / spread)[:, 1].astype(np.float64)


def by_rank(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """The share of non-members with a larger value, and half of those with the same; members are not used."""
    return lambda values: ranks(values, others)


ATTACKS: dict[str, Attack] = {
    "loss": by_loss,
    "confidence": by_confidence,
    "regression": by_regression,
    "rank": by_rank,
}


def _undefined(members: Floats, others: Floats) -> Callable[[Floats], Floats]:
    """NaN for a model without finite losses; a verdict counts it neither way."""
    return lambda values: np.full(values.size, np.nan)


def _labelled(members: Floats, others: Floats) -> tuple[Floats, Ints]:
    features = np.concatenate([members, others])[:, None]
    return features, np.concatenate([np.ones(members.size, np.int64), np.zeros(others.size, np.int64)])
