"""Fine-tune the unlearned model on retained data and k forget examples, and test what comes back (2505.22310).

The k examples come from the exposed fifth of the forget set. The other four fifths, which the attack never sees, are
scored. With k = 0 the attack uses no forget example at all, and a retrained model hardly changes.

One attack is one point of a sweep: a spec lists several `[[attack]]` with a `label` each, and a verdict uses all of
them together. `source` says what data the attacker has besides the k examples: the retain set, unseen data (the test
set, which then no longer measures utility), or nothing (`forget`).

Batch norm is in training mode, as in the code of 2505.22310. With one example and no other data it has no batch to
normalise over, so it uses its running statistics and does not change them. Norms in frozen parts never change theirs.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.attacks._unexposed import allowed, known
from expunge.base.errors import SpecError
from expunge.base.part import Count, Natural, Positive
from expunge.core.case import Attacked, Case, Cost, Curve, Meter, copy_for_training
from expunge.core.contracts import Attack
from expunge.core.generators import generator_of
from expunge.core.modules import restore_state, saved_state
from expunge.core.norms import fixed_statistics
from expunge.core.problem import Problem
from expunge.core.refusals import require_trainable
from expunge.core.seeding import forked
from expunge.train.evaluation import sample, skill
from expunge.train.loop import batch_count, batches, fit
from expunge.train.optim import OptimizerName, make_optimizer

UNSEEN, LEAST_SKILL = 200, 0.1
"""Unseen examples on which a state's skill is measured, and the share of the first state's skill that it must keep."""


@dataclass(frozen=True)
class Relearn(Attack):
    """Relearning by fine-tuning."""

    trains: ClassVar[bool] = True
    version: ClassVar[int] = 2

    k: Natural = 0
    """Number of different forget examples that the attacker has, from the exposed part. A group, such as an example's
    copies or the texts about a person, counts as one, and the attacker has all of it."""
    source: Literal["retain", "test", "forget"] = "retain"
    """Other training data: `retain`, `test`, or `forget` for nothing but the k examples (k at least 1)."""
    epochs: Count = 5
    """Passes over the source and the k examples."""
    learning_rate: Positive = 2e-4
    """Constant step size; by default the one of the methods."""
    batch_size: Count = 128
    """Examples per step."""
    optimizer: OptimizerName = "adam"
    """`adam`, `adamw` or `sgd`."""
    accumulate: Count = 1
    """Number of micro-batches per batch, to save memory; the loss is that of the whole batch."""
    points: Count = 20
    """Evaluations along the curve, evenly spaced over the steps, in addition to the one before the first step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "forget" and self.k == 0:
            raise SpecError("found 0, which leaves nothing to train on", where="k", allowed="1 or more here")

    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        """Attack a copy of the model.

        Raises:
            SpecError: k exceeds the exposed part of the forget set.
            RunError: Training diverged.
        """
        problem, start, meter = case.problem, time.perf_counter(), Meter()
        ids, student = self.training_ids(problem), copy_for_training(model)
        steps = self.epochs * batch_count(len(ids), self.batch_size)
        watch = _Watch(student, problem, every=max(steps // self.points, 1), last=steps)
        with forked(seed):
            watch.look(0)
            self._train(student, problem, ids, seed, meter, watch)
        curve = Curve(
            np.array(watch.steps), np.stack(watch.values), problem.unexposed.numpy(), np.array(watch.collapsed)
        )
        restore_state(student, watch.best)
        return Attacked(student.eval(), curve, Cost(meter.gradients, time.perf_counter() - start))

    def check(self, problem: Problem) -> None:
        """Check that there are k exposed examples.

        Raises:
            SpecError: There are fewer.
        """
        self.training_ids(problem)

    def training_ids(self, problem: Problem) -> Tensor:
        """Ids of the source and of the first k exposed examples with their copies; no unexposed one, and no copy."""
        groups = problem.data.group_of(problem.exposed)
        # Groups in the order of the forget set, each at its first example.
        distinct = list(dict.fromkeys(groups.tolist()))
        if self.k > len(distinct):
            raise SpecError(
                f"found {self.k}",
                where="attack.k",
                allowed=f"0 to {len(distinct)}, the exposed forget examples; a group counts as one",
            )
        chosen = torch.isin(groups, torch.tensor(distinct[: self.k], dtype=torch.int64))
        source = {"retain": problem.retain, "test": problem.test, "forget": problem.forget[:0]}[self.source]
        return torch.cat([allowed(problem, source), problem.exposed[chosen]])

    def _train(self, student: nn.Module, problem: Problem, ids: Tensor, seed: int, meter: Meter, watch: _Watch) -> None:
        parameters = require_trainable(student)
        generator = generator_of(seed, "batches")
        with fixed_statistics(student) if len(ids) == 1 else nullcontext():
            fit(
                parameters,
                lambda batch: problem.objective.loss(student, batch),
                batches(problem.data, ids, self.batch_size, self.epochs, generator),
                make_optimizer(self.optimizer, parameters, self.learning_rate),
                meter=meter,
                on_step=watch.after_step,
                accumulate=self.accumulate,
            )


class _Watch:
    """Records what the model knows during the attack, and keeps the weights at the peak; of equal peaks, the first.

    A state that answers alike whatever the input is a peak only if every state is such a state. Otherwise a collapse to
    the forget set's label would count as knowledge that came back.
    """

    def __init__(self, student: nn.Module, problem: Problem, every: int, last: int) -> None:
        self.student, self.problem, self.every, self.last = student, problem, every, last
        self.steps: list[int] = []
        self.values: list[np.ndarray] = []
        self.collapsed: list[bool] = []
        self.best: dict[str, Tensor] = {}
        self._peak = (False, -math.inf)
        self._unseen = sample(problem.test, UNSEEN, "unseen")
        self._least = LEAST_SKILL * skill(student, problem, self._unseen)

    def after_step(self, step: int, _: float) -> None:
        if step % self.every == 0 or step == self.last:
            self.look(step)

    def look(self, step: int) -> None:
        value = known(self.student, self.problem)
        # The state before the first step is on the curve, but the attack did not produce it. A state that knows less
        # than a peak with skill cannot replace it.
        rivals = step > 0 and not (self._peak[0] and value.mean() <= self._peak[1])
        skilled = not rivals or skill(self.student, self.problem, self._unseen) >= self._least
        self.steps.append(step)
        self.values.append(value)
        self.collapsed.append(not skilled)
        if rivals and (skilled, float(value.mean())) > self._peak:
            self._peak, self.best = (skilled, float(value.mean())), saved_state(self.student)
