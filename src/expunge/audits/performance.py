"""The objective's metrics on the forget, retain and test set, and on the hold-out if the task has one.

The objective's knowledge metrics are judged on the forget set, against retrained models and not against chance; its
utility metrics on the test set. For a classifier both are accuracy. For a language model knowledge is graded, see
`objectives/language_modelling.py`, and what was retained is utility beside unseen text. For numbers both are the
explained share of the variance.

Each value comes with a baseline: what the model would score by answers that do not depend on the input, see
`core/answers.py`. Verdicts subtract it, tables do not. Where examples have labels, `worst_label_accuracy` is the
accuracy of the label on which the model is worst: a label may be lost without a visible change of the mean.

If the data have paraphrases of what is forgotten, on which no model trains, the same knowledge is judged on them, too.
`erased` does not depend on them alone: they are one more way in which a model may show what it knows. So it is with
questions about what is forgotten, such as those of a benchmark; if they have answers to choose from, see
`audits/_choices.py`.

If the data name the fact in each answer, knowledge of the facts alone is judged, too, see `audits/_facts.py`, and
`erased` depends on it.

If a task planted corruption and kept the true targets, `healed` is the utility metric against the true targets on all
corrupted training examples, discovered or not. The inputs are those of training, with their trigger if they have one
(2505.17730).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from expunge.audits._choices import choices
from expunge.audits._facts import FACTS, judge_of
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.objective import Metric
from expunge.core.once import once_per_batch
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import DataWithObjective, answers, baselines, by_label, classes_given, measured, sample

ASKED = ("paraphrase", "question")
"""Splits of texts about what must be forgotten, on which no model trains."""
MOST_UNSEEN = 2000
"""Unseen examples that the baseline of an answer is measured on; more would not change it visibly."""


@dataclass(frozen=True)
class Performance(Audit):
    """Every metric of the objective, per split; always part of a run."""

    version: ClassVar[int] = 3

    retain: Count = 2000
    """Retain examples to score, a fixed random part."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The value of each metric per example, and utility by label."""
        with once_per_batch(model):
            scores = self._scores(model, case.problem)
        # Texts of answers have ids of their own, by which outputs of others would be taken for theirs.
        return [*scores, *choices(model, case.problem)]

    def _scores(self, model: nn.Module, problem: Problem) -> list[Scores]:
        splits = {
            "forget": problem.unexposed,
            "retain": sample(problem.retain, self.retain, "retain"),
            "test": problem.test,
            "holdout": problem.holdout,
            "paraphrase": problem.paraphrases,
            "question": problem.questions,
        }
        splits = {split: ids for split, ids in splits.items() if len(ids)}
        judged = DataWithObjective(problem.data, judge_of(problem))
        values = {split: measured(model, judged, ids) for split, ids in splits.items()}
        unseen = answers(model, judged, sample(problem.test, MOST_UNSEEN, "unseen"))
        controls = {split: baselines(model, judged, ids, unseen) for split, ids in splits.items() if split != "retain"}
        # Read from the outputs that are kept already, for the page's table of who is taken for what.
        shown = ("forget", "test") if problem.data.has_classes else ()
        given = {split: classes_given(model, problem, splits[split]) for split in shown if split in splits}
        scores = [
            _scores(metric, split, values[split][metric.name], splits[split], problem, controls.get(split, {}), given)
            for metric in judged.objective.metrics
            for split in splits
            if _is_measured(metric, split, "holdout" in splits)
            and not (metric in FACTS and np.isnan(values[split][metric.name]).all())
        ]
        return [*scores, *_by_label(model, problem), *_healed(model, problem)]


def _is_measured(metric: Metric, split: str, has_holdout: bool) -> bool:
    # Without retrained models, unseen examples are what the forget set is compared with.
    unseen = "holdout" if has_holdout else "test"
    return metric.utility or not metric.knowledge or split in ("forget", *ASKED, unseen)


def _scores(
    metric: Metric,
    split: str,
    values: np.ndarray,
    ids: Tensor,
    problem: Problem,
    controls: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
) -> Scores:
    role: Role = "description"
    if split in ("forget", *ASKED) and metric.knowledge:
        role = "knowledge"
    if metric.utility and split in metric.utility_on:
        role = "utility"
    better: Better = metric.better if split in ("retain", "test") else "reference"
    baseline, answer = controls.get(metric.name), None if metric in FACTS else given.get(split)
    if metric in FACTS:
        rows = ~np.isnan(values)
        values, ids, baseline = values[rows], ids[rows], None if baseline is None else baseline[rows]
    return Scores(
        metric.name, split, values, ids.numpy(), role, metric.unit, better, group=_groups(problem, ids),
        sign=metric.sign, required=split == "forget" and role == "knowledge" and metric.required, bound=metric.bound,
        baseline=baseline, answer=answer, target=None if answer is None else problem.data.targets[ids].numpy(),
    )  # fmt: skip


def _groups(problem: Problem, ids: Tensor) -> np.ndarray | None:
    return None if problem.data.groups is None else problem.data.group_of(ids).numpy()


def _by_label(model: nn.Module, problem: Problem) -> Iterator[Scores]:
    """The utility metric on the test set, one value per example and label that it has."""
    parts = by_label(model, problem, problem.test)
    if parts is None:
        return
    values, ids, labels = parts
    metric = next(metric for metric in problem.objective.metrics if metric.utility)
    yield Scores(
        f"worst_label_{metric.name}", "test", values, ids.numpy(), "utility", metric.unit, metric.better,
        group=_groups(problem, ids), sign=metric.sign, reduce="worst", bound=metric.bound, label=labels,
    )  # fmt: skip


def _healed(model: nn.Module, problem: Problem) -> Iterator[Scores]:
    ids, true = problem.corrupted, problem.true_targets
    if not len(ids) or true is None:
        return
    corrected = replace(problem, data=problem.data.relabelled(ids, true[ids]))
    metric = next(metric for metric in problem.objective.metrics if metric.utility)
    values = measured(model, corrected, ids)[metric.name]
    yield Scores(
        "healed", "corrupted", values, ids.numpy(), "description", metric.unit, metric.better,
        group=_groups(problem, ids), sign=metric.sign,
    )  # fmt: skip
