"""Is forgotten knowledge recoverable from context? A few demonstrations, a frozen model, and a readout in closed form.

The model is not trained. From n held-out demonstrations of what is forgotten, concept regression (2509.20882) learns
how to read its last hidden layer, and then answers the forget examples. The value of an example is how often it is
answered right, over all numbers of demonstrations and random draws of them. `in_context_chosen` is the same with the
demonstrations that an attacker would choose: of these draws, and of the demonstrations that cover the forget examples
best, those that answer the other known examples best. A method that changes only the
output layer leaves the hidden states as they were, so a single demonstration brings everything back.

New demonstrations also *teach*: a model that never saw a class learns it from them. So only what retrained models do
not have from the same demonstrations counts, and of them `retrain` has no more than other retrained models.

A demonstration of a class is one example of each label, of the forgotten ones from the part that attackers may use.
Where examples have several labels, the two options are that an example has the forgotten one or not. A demonstration of
a person is a question about *other* people to forget, with its right answer: it shows how the model tells right answers
from wrong ones. Then each question has several answers to choose from, as in the data sets `people` and `factbook`, and
two things are read beside the hidden layer. `in_context_own` reads the model's own preferences: how likely it finds
each answer, and in which order. It finds what a model still prefers without saying it, also in reverse, or in second
place. `prompted` says, for models whose context is long enough, which answer the model itself finds most likely after
such demonstrations as a prompt.

Only classes, concepts and persons can be demonstrated by others of their kind. On single hard examples the audit would
measure their class, so it refuses them. The readout is linear and reads one layer: if it finds nothing, that proves
nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from expunge.audits._context_sets import WHERE, ContextSettings, sets_of
from expunge.audits._contexts import (
    SHOWN,
    Context,
    LabelContext,
    answered,
    contexts_of,
    correct,
)
from expunge.audits._one_label import about_one_label
from expunge.audits._prompted import prompted
from expunge.base.errors import SpecError
from expunge.base.part import Count, Natural, Share
from expunge.core.case import Case
from expunge.core.features import require_layers
from expunge.core.objective import DECISIONS
from expunge.core.problem import Problem
from expunge.evidence.estimate import Better
from expunge.evidence.intervals import Floats, Ints
from expunge.evidence.scores import Role, Scores
from expunge.numerics.concept_regression import risk


@dataclass(frozen=True)
class InContext(ContextSettings):
    """Accuracy of a readout that is fitted on a few demonstrations."""

    needs: ClassVar[frozenset[str]] = frozenset({DECISIONS})
    cite: ClassVar[str] = "tang2025concept"

    draws: Count = 8
    """Random draws of demonstrations."""
    level: Share = 0.8
    """Accuracy that `in_context_needed` asks for."""
    prompt: Natural = 4
    """Demonstrations of the prompt for language models; 0 leaves `prompted` out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.demonstrations or list(self.demonstrations) != sorted(set(self.demonstrations)):
            finding = f"found {list(self.demonstrations)}"
            raise SpecError(finding, where="demonstrations", allowed="at least one number, each larger than the last")

    def check(self, problem: Problem) -> None:
        """Refuse a problem that no demonstration of its own kind explains.

        Raises:
            SpecError: The forget set is no class, concept or person, or too small for so many demonstrations.
        """
        sets_of(about_one_label(problem, WHERE), self)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without this layer.

        Raises:
            SpecError: There is no such layer; lists the layers of the model.
        """
        if self.layer:
            require_layers(model, [self.layer], "layer")

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Accuracy with random and with chosen demonstrations, its curve with the risk, and the number needed.

        Raises:
            SpecError: As in `check` and `check_model`.
        """
        problem = about_one_label(case.problem, WHERE)
        scores: list[Scores] = []
        contexts = contexts_of(model, problem, self)
        for name, context in contexts.items():
            scores += self._read(name, context, problem)
        return [*scores, *prompted(model, problem, next(iter(contexts.values())).sets, self.prompt)]

    def _read(self, name: str, context: Context, problem: Problem) -> list[Scores]:
        orders = [context.drawn(draw) for draw in range(self.draws)]
        readings = _read(context, [*orders, context.covering(max(self.demonstrations))], self.demonstrations)
        drawn, chosen = readings.at(slice(len(orders))), readings.best()
        named = ((name, drawn, True), (f"{name}_chosen", chosen, False))
        scores = [self._knowledge(metric, context, of, problem, required) for metric, of, required in named]
        scores += [
            _scores(metric, split, of.right[split].mean((0, 1)), context, problem)
            for metric, of, _ in named
            for split in context.sets.queries
            if split != "forget"
        ]
        return [*scores, *self._curve(name, context, drawn, problem)]

    def _knowledge(self, name: str, context: Context, readings: _Readings, problem: Problem, required: bool) -> Scores:
        baseline = None
        if isinstance(context, LabelContext):
            # How often this label is given to unseen examples of other labels, in the same readings.
            baseline = readings.taken_for.mean((0, 1))[context.right["forget"].numpy()]
        values = readings.right["forget"].mean((0, 1))
        facts: dict[str, Any] = {"role": "knowledge", "required": required}
        return _scores(name, "forget", values, context, problem, baseline=baseline, **facts)

    def _curve(self, name: str, context: Context, drawn: _Readings, problem: Problem) -> list[Scores]:
        """Accuracy and risk by number of demonstrations, and the number at which the level is reached."""
        scores = []
        for place, count in enumerate(self.demonstrations):
            right, error = (of["forget"][:, place].mean(0) for of in (drawn.right, drawn.risk))
            scores.append(_scores(f"{name}_n{count}", "forget", right, context, problem))
            facts: dict[str, Any] = {"unit": "squared error", "sign": -1}
            scores.append(_scores(f"{name}_risk_n{count}", "forget", error, context, problem, **facts))
        curve = [float(drawn.right["forget"][:, place].mean()) for place in range(len(self.demonstrations))]
        reached = np.array([needed(self.demonstrations, curve, self.level)])
        ids = np.zeros(1, np.int64)
        last = Scores(
            f"{name}_needed", "forget", reached, ids, "description", "demonstrations", "reference", sign=-1,
            reduce="single",
        )  # fmt: skip
        return [*scores, last]


@dataclass(frozen=True, eq=False)
class _Readings:
    """What is read after each number of demonstrations, `[draws, numbers, ...]`."""

    right: dict[str, Floats]
    """By split, whether each query is answered right, `[draws, numbers, q]`."""
    risk: dict[str, Floats]
    """By split, squared error over the options, `[draws, numbers, q]`."""
    taken_for: Floats
    """How often unseen queries are given each option that is wrong, `[draws, numbers, M]`."""
    known: Floats
    """Accuracy on the candidates that are not shown, `[draws, numbers]`; 0 if all are."""

    def at(self, draws: slice | Ints) -> _Readings:
        """Some draws; or for each number its own draw, `[1, numbers]`."""

        def part(values: Floats) -> Floats:
            of = values[draws] if isinstance(draws, slice) else values[draws[0], np.arange(values.shape[1])][None]
            return np.asarray(of, dtype=np.float64)

        right, errors = ({split: part(of) for split, of in table.items()} for table in (self.right, self.risk))
        return _Readings(right, errors, part(self.taken_for), part(self.known))

    def best(self) -> _Readings:
        """For each number the draw that answers the candidates best that it does not show."""
        return self.at(self.known.argmax(0)[None])


def _read(context: Context, orders: list[list[Tensor]], numbers: tuple[int, ...]) -> _Readings:
    right: dict[str, list[Floats]] = {split: [] for split in context.right}
    errors: dict[str, list[Floats]] = {split: [] for split in context.right}
    taken, known = [], []
    units = {s: torch.nn.functional.one_hot(r, context.options).double() for s, r in context.right.items()}
    for order in orders:
        for count in numbers:
            rows = [of[:count] for of in order]
            predicted = context.predicted(rows)
            for split, answers in predicted.items():
                right[split].append(correct(answers, context.right[split]))
                errors[split].append(risk(answers, units[split]).numpy())
            taken.append(_taken_for(predicted["test"], units["test"]))
            known.append(_known(right[SHOWN][-1], rows, context.sets.candidates))
    shape = (len(orders), len(numbers), -1)
    return _Readings(
        {split: np.stack(values).reshape(shape) for split, values in right.items()},
        {split: np.stack(values).reshape(shape) for split, values in errors.items()},
        np.stack(taken).reshape(shape),
        np.array(known).reshape(shape[:2]),
    )


def _known(right: Floats, rows: list[Tensor], candidates: list[Tensor]) -> float:
    """Accuracy on candidates that are not shown, the mean over lists of candidates."""
    shares, first = [], 0
    for shown, ids in zip(rows, candidates, strict=True):
        hidden = np.ones(len(ids), dtype=bool)
        hidden[shown.numpy()] = False
        if hidden.any():
            shares.append(right[first : first + len(ids)][hidden].mean())
        first += len(ids)
    return float(np.mean(shares)) if shares else 0.0


def _taken_for(predicted: Tensor, right: Tensor) -> Floats:
    wrong = answered(predicted) * (1 - right)
    shares: Floats = (wrong.sum(0) / (1 - right).sum(0).clamp(min=1)).numpy()
    return shares


def needed(numbers: tuple[int, ...], accuracies: list[float], level: float) -> float:
    """The number of demonstrations at which the accuracy reaches a level, on a line over their logarithm.

    Args:
        numbers: Numbers of demonstrations, rising.
        accuracies: Their accuracies.
        level: The accuracy to reach.

    Returns:
        The number; the smallest if that suffices, and twice the largest if none does.
    """
    if accuracies[0] >= level:
        return float(numbers[0])
    for place in range(1, len(numbers)):
        low, high = accuracies[place - 1], accuracies[place]
        if high >= level:
            share = (level - low) / (high - low)
            return math.exp((1 - share) * math.log(numbers[place - 1]) + share * math.log(numbers[place]))
    return 2.0 * numbers[-1]


def _scores(
    metric: str,
    split: str,
    values: Floats,
    context: Context,
    problem: Problem,
    *,
    role: Role = "description",
    unit: str = "share",
    sign: int = 1,
    required: bool = False,
    baseline: Floats | None = None,
) -> Scores:
    ids = context.sets.queries[split]
    group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
    better: Better = "higher" if split == "test" else "reference"
    return Scores(
        metric, split, values, ids.numpy(), role, unit, better, group=group, sign=sign, required=required,
        baseline=baseline,
    )  # fmt: skip
