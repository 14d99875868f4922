"""Can a linear probe (1610.01644) still read the answer from a hidden layer, even if the output hides it?

The probe is a logistic regression from the layer's standardised features to labels. It is fitted on retained examples
and predicts the labels of the unexposed forget set. The value is 1 if it predicts the label that the original was
trained on (for a language model, the share of an example's tokens). A method that changes only the output layer leaves
the features as they were, so the probe still reads the label. More means *knows more*, compared with retrained models:
their features also predict labels of examples that they never saw.

The probe reads what the features share with those of retained examples. It reads wrong labels that were learned by
heart only in part (a quarter of them from an MLP on digits), and never a class without retained examples. Then the
range between original and retrained model is small, and the verdict takes that into account. With `exposed`, the probe
is also fitted on the fifth of the forget set that attackers may use, and reads more.

Where examples have several labels, the probe reads the one that is forgotten, as a yes-or-no question.

If the task keeps true labels, a second score says how often the probe reads the true label.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from expunge.audits._evaluate import per_example_scores
from expunge.audits._one_label import about_one_label
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.data import Batch
from expunge.core.decisions import Decisions, per_example
from expunge.core.features import Features, flat, last_hidden, require_layers
from expunge.core.objective import DECISIONS, Objective
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.intervals import Floats, Ints
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import evaluate, sample

WHERE = "audit.probe.layer"


@dataclass(frozen=True)
class Probe(Audit):
    """Linear probes of one hidden layer."""

    needs: ClassVar[frozenset[str]] = frozenset({DECISIONS})

    cite: ClassVar[str] = "alain2016probes"

    layer: str = ""
    """Path of the module whose output is probed; by default the last hidden layer, the input of the last weights."""
    count: Count = 2000
    """Decisions to fit on, from a fixed random part of the retain set: examples, or tokens of a language model."""
    exposed: bool = False
    """Whether to fit on the exposed part of the forget set as well."""

    def check(self, problem: Problem) -> None:
        """Refuse forget examples that are about several labels each.

        Raises:
            SpecError: They are.
        """
        about_one_label(problem, "audit.probe")

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without this layer.

        Raises:
            SpecError: There is no such layer; lists the layers of the model.
        """
        if self.layer:
            require_layers(model, [self.layer], "layer")

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The share of each example's decisions that the probe predicts right.

        Raises:
            SpecError: There is no such layer, or its output is not one row of features per decision.
        """
        problem = _at_layer(about_one_label(case.problem, "audit.probe"), model, self.layer)
        read = fit_probe(*self._examples(model, problem))

        def right(decisions: Decisions, size: int) -> Tensor:
            predictions = torch.from_numpy(read(_plain(decisions.logits))).to(decisions.targets)
            return per_example((predictions == decisions.targets).double(), decisions.example, size, mean=True)

        def score(split: str, role: Role, ids: Tensor, labelled: Problem = problem, **facts: Any) -> Scores:
            facts = {"metric": "recoverability", "better": "reference"} | facts
            return per_example_scores(model, labelled, ids, right, split=split, role=role, unit="share", **facts)

        scores = [score("forget", "knowledge", problem.unexposed)]
        scores += [score("holdout", "description", problem.holdout)] if len(problem.holdout) else []
        scores += [score("test", "description", problem.test)]
        if problem.true_targets is not None:
            true = problem.data.relabelled(problem.unexposed, problem.true_targets[problem.unexposed])
            better: Better = "higher"
            facts = {"metric": "recoverability_of_truth", "better": better}
            scores += [score("forget", "description", problem.unexposed, replace(problem, data=true), **facts)]
        return scores

    def _examples(self, model: nn.Module, problem: Problem) -> tuple[Floats, Ints]:
        """Features `[n, d]` and labels `[n]` to fit on."""
        group_of = problem.data.group_of
        # No undiscovered corruption, and no copy of an example that is scored later.
        ids = problem.reference_train
        ids = ids[~torch.isin(group_of(ids), group_of(problem.unexposed))]
        features, labels = _collected(model, problem, sample(ids, self.count, "probe"))
        # An example of a language model has many decisions; take evenly spaced ones.
        chosen = np.linspace(0, len(labels) - 1, min(self.count, len(labels))).astype(np.int64)
        features, labels = features[chosen], labels[chosen]
        if self.exposed:
            more, theirs = _collected(model, problem, problem.exposed)
            return np.concatenate([features, more]), np.concatenate([labels, theirs])
        return features, labels


def _collected(model: nn.Module, problem: Problem, ids: Tensor) -> tuple[Floats, Ints]:
    """Features and label of every decision of these examples."""
    kept: list[tuple[Floats, Ints]] = []

    def keep(decisions: Decisions, size: int) -> Tensor:
        kept.append((_plain(decisions.logits), decisions.targets.cpu().numpy()))
        return torch.zeros(size)

    evaluate(model, problem, ids, keep)
    return np.concatenate([features for features, _ in kept]), np.concatenate([labels for _, labels in kept])


def fit_probe(features: Floats, labels: Ints) -> Callable[[Floats], Ints]:
    """Logistic regression with a penalty of 1 on standardised features.

    Args:
        features: `[n, d]`.
        labels: `[n]`.

    Returns:
        A function from features `[m, d]` to predicted labels `[m]`; -1 (no label) if the features are not finite.
    """
    if not np.isfinite(features).all():
        return lambda rows: np.full(len(rows), -1, dtype=np.int64)
    mean, scale = features.mean(0), features.std(0)
    scale[scale == 0] = 1.0
    if np.unique(labels).size == 1:
        return lambda rows: np.full(len(rows), labels[0], dtype=np.int64)
    with warnings.catch_warnings():
        # A fit that stops early is still the same for every model.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=1000).fit((features - mean) / scale, labels)

    def read(rows: Floats) -> Ints:
        finite = np.isfinite(rows).all(1)
        predictions = np.full(len(rows), -1, dtype=np.int64)
        if finite.any():
            predictions[finite] = fitted.predict((rows[finite] - mean) / scale)
        return predictions

    return read


def _at_layer(problem: Problem, model: nn.Module, layer: str) -> Problem:
    objective: Any = _AtLayer(problem, model, layer)
    return replace(problem, objective=objective)


class _AtLayer:
    """The objective of a problem, with a layer's features `[n, d]` instead of logits.

    Args:
        problem: Its objective makes the decisions.
        model: The model of the layer; without a path it runs once to find the last hidden layer.
        layer: Path of a module, or the empty string.

    Raises:
        SpecError: There is no such module.
    """

    def __init__(self, problem: Problem, model: nn.Module, layer: str) -> None:
        layers = require_layers(model, [layer], WHERE) if layer else [last_hidden(model, problem, WHERE)]
        self.objective: Objective = problem.objective
        self.features = Features(problem, layers, WHERE)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """The decisions, with features instead of logits."""
        decisions, (features,) = self.features(model, batch)
        return decisions._replace(logits=flat(features))

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """As the problem's objective does."""
        return self.objective.relabel(batch, generator)


def _plain(features: Tensor) -> Floats:
    array: Floats = features.double().cpu().numpy()
    return array
