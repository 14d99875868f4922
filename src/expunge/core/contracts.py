"""Abstract base classes of all parts: data sets, models, blocks, tasks, methods, attacks, audits and diagnostics."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from expunge.base.errors import ExpungeError, MissingError, SpecError
from expunge.base.part import Part
from expunge.core.case import Attacked, Case, Cost, Meter, Recipe, Unlearned, copy_for_training
from expunge.core.data import Data
from expunge.core.job import Job
from expunge.core.modules import first_parameter, trainable
from expunge.core.objective import Objective
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.evidence.estimate import Estimate
from expunge.evidence.scores import Scores


@dataclass(frozen=True)
class Source(Part):
    """A data set."""

    @abstractmethod
    def __call__(self) -> Data:
        """Load it.

        Raises:
            MissingError: The data set is not on this machine; the message says how to get it.
        """


@dataclass(frozen=True)
class Augmentation(Part):
    """A random change of inputs in training, unlearning and attacks, but not in evaluation."""

    @abstractmethod
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Change the inputs of a batch, `[b, ...]`; the shape stays. All random numbers come from the generator."""


@dataclass(frozen=True)
class Architecture(Part):
    """A model family."""

    @abstractmethod
    def __call__(self, data: Data) -> nn.Module:
        """Build a freshly initialised model for such data. It draws from torch's global generator."""

    def original(self, data: Data) -> nn.Module | None:
        """The user's own trained model, if the settings name one; `None` if originals are trained."""
        return None

    def original_digest(self) -> str | None:
        """Content address of the weights of `original`; if there is one, the verdict is about that model alone."""
        return None


@dataclass(frozen=True)
class Block(Part):
    """A module that is inserted into a model, behind one of the model's modules."""

    preserves: ClassVar[bool] = False
    """Whether the block must not change the outputs of any model. If so, this is checked."""

    @abstractmethod
    def __call__(self, model: nn.Module, path: str) -> nn.Module | None:
        """Make the module that runs on the output of the module at this path.

        Args:
            model: The model, from which the block can read sizes.
            path: Path of the module, as in `model.named_modules()`.

        Returns:
            A module from a tensor to a tensor of the same shape, which runs in training and in evaluation. `None` if
            the block changed the model itself and nothing needs to run.

        Raises:
            SpecError: The block does not fit at this path.
        """


@dataclass(frozen=True)
class Task(Part):
    """A way to choose what must be forgotten."""

    measures: ClassVar[bool] = False
    """Whether the task needs the statistics of `measure`."""

    def measure(self, data: Data, recipe: Recipe, seed: int) -> Mapping[str, Tensor]:
        """Statistics that need training, such as C-scores. They are cached separately from the problem."""
        return {}

    @abstractmethod
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """Construct the problem from the data and what `measure` returned.

        Raises:
            SpecError: The data do not suit this task.
        """


@dataclass(frozen=True)
class Method(Part):
    """A way to unlearn. A call copies the model, sets the seed, and measures the cost; `apply` works on the copy."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the method requires: `recipe`, or what an objective provides: `decisions`, `classes`, `tokens`,
    `relabel`."""
    blocks: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Modules, inserted by blocks, that the method requires in the model, such as `TiedLayer`."""
    paper: ClassVar[str] = ""
    """Name and year of the source, for tables."""
    effort: ClassVar[str] = ""
    """Cost in short, for tables, in the letters that `expunge list methods` explains. The head of the method's file
    gives it in full."""
    priced: ClassVar[bool] = True
    """Whether the gradients counted in its call are the cost of unlearning; false if the model was unlearned
    elsewhere."""
    repeatable: ClassVar[bool] = True
    """Whether it can run again on shadow models, as some audits need; false for a method that reads weights from a
    file."""
    measures: ClassVar[bool] = False
    """Whether `measure` returns anything."""

    @property
    def required(self) -> frozenset[str]:
        """What the method requires with these settings: `needs`, unless a setting adds to it."""
        return self.needs

    @property
    def ascent(self) -> float | None:
        """Weight of ascent on the forget set, if the method is plain descent on the retain set with this ascent.

        Stability diagnostics predict the behaviour of such methods; `None` by default.
        """
        return None

    def unmet(self, problem: Problem, recipe: Recipe | None, model: nn.Module) -> list[str]:
        """The needs of the method that this problem, recipe and model do not meet."""
        return unmet_needs(self, problem.objective, model, recipe=recipe is not None)

    def missing_blocks(self, model: nn.Module) -> list[str]:
        """Names of `blocks` that the model lacks. A method that can insert its block itself overrides this."""
        return [kind.__name__ for kind in self.blocks if not any(isinstance(m, kind) for m in model.modules())]

    def check(self, problem: Problem) -> None:
        """Refuse, before anything is trained, a problem that the settings do not fit.

        Raises:
            ExpungeError: A setting does not fit; the message names it.
        """
        return

    def check_model(self, model: nn.Module) -> None:
        """Refuse, before anything is trained, a model that the method does not support.

        Raises:
            ExpungeError: The model is not supported; the message says why.
        """
        return

    def expected_gradients(self, retain: int, forget: int) -> float:
        """Expected number of per-example gradients of a run, for the forecast of `run --dry-run`.

        By default one pass over both sets, or as many passes as the setting `epochs` says. Override it if that is
        wrong. For a method that needs the recipe this is not called: its cost is taken to be that of one training.

        Args:
            retain: Examples in the retain set.
            forget: Examples in the forget set.

        Returns:
            An estimate within a factor of two. If a rule may stop the method early, the upper bound.
        """
        return float(getattr(self, "epochs", 1)) * (retain + forget)

    def measure(self, model: nn.Module, job: Job) -> Mapping[str, Tensor]:
        """Statistics of the model that `apply` reads from `job.statistics`; a run computes them once and caches them.

        Args:
            model: The model to be unlearned, in evaluation mode; leave it as it is.
            job: Its meter is charged for every gradient.

        Returns:
            Tensors by name.
        """
        return {}

    def __call__(
        self,
        model: nn.Module,
        problem: Problem,
        recipe: Recipe | None,
        seed: int,
        budget: int | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Unlearned:
        """Unlearn the problem's forget set.

        Args:
            model: The model that was trained on the forget set; never changed.
            problem: The problem with the forget set.
            recipe: How such models are trained.
            seed: Everything random in the method follows from it.
            budget: Upper bound in per-example gradients.
            statistics: What `measure` returned for this model; without them it is asked here, and its cost is added.

        Returns:
            The unlearned model in evaluation mode, with its cost.

        Raises:
            MissingError: The problem, the recipe or the model lacks something that the method requires.
            RunError: Training diverged.
            SpecError: Measuring alone exceeds the budget.
        """
        refuse_unmet(self.unmet(problem, recipe, model), where=type(self).__name__)
        refuse_model(self, model, type(self).__name__)
        self.check(problem)
        start, meter, student = time.perf_counter(), Meter(budget), copy_for_training(model)
        with forked(seed):
            job = Job(problem, recipe, seed, meter, first_parameter(student).device)
            if self.measures and statistics is None:
                statistics = self._measured(model, job)
            job = replace(job, statistics={n: t.to(job.device) for n, t in (statistics or {}).items()})
            student = self.apply(student, job).eval()
        return Unlearned(student, type(self).__name__, Cost(meter.gradients, time.perf_counter() - start))

    def _measured(self, model: nn.Module, job: Job) -> Mapping[str, Tensor]:
        """Ask `measure`. What it draws does not move what `apply` draws from the global generators."""
        with forked():
            statistics = self.measure(copy.deepcopy(model).eval(), job)
        if not job.meter.affords(0):
            raise SpecError(
                f"its statistics took {job.meter.gradients} per-example gradients of {job.meter.limit}",
                where=f"{type(self).__name__} (budget)",
                remedy="raise the budget, or pass the statistics",
            )
        return statistics

    @abstractmethod
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Unlearn: change the student, or make another model, and return it. Count every gradient in `job.meter`."""


@dataclass(frozen=True)
class Attack(Part):
    """A way to recover forgotten knowledge. It may use `problem.retain` and `problem.exposed`, never `unexposed`."""

    def check(self, problem: Problem) -> None:
        """Refuse, before anything is trained, a problem that the settings do not fit.

        Raises:
            SpecError: A setting does not fit; the message names it.
        """
        return

    def check_model(self, model: nn.Module) -> None:
        """Refuse, before anything is trained, a model that lacks what the attack changes.

        Raises:
            MissingError: The model lacks something; the message says what.
        """
        return

    @abstractmethod
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        """Attack a copy of the model.

        Raises:
            RunError: Training diverged.
        """


@dataclass(frozen=True)
class Audit(Part):
    """A measurement of a model in its case."""

    after_attack: ClassVar[bool] = True
    """Whether the audit is repeated on attacked models."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the objective must provide: `"decisions"`, `"classes"` or `"tokens"`."""

    @property
    def shadow_pairs(self) -> int:
        """Number of shadow models of each kind in `case.shadows`. For an attacked model, they are attacked too."""
        return 0

    def check_model(self, model: nn.Module) -> None:
        """Refuse, before anything is trained, a model that the audit cannot measure.

        Raises:
            ExpungeError: The model is not supported; the message says why.
        """
        return

    @abstractmethod
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Scores per example, with ids, for each split that the audit measures."""


class Watcher(Protocol):
    """A monitor's object for one training. It is called after each step, measures at some steps, and keeps lists."""

    def __call__(self, step: int, model: nn.Module) -> None:
        """Measure the model after this many steps, without changing it."""
        ...

    @property
    def record(self) -> Mapping[str, Sequence[float]]:
        """All measurements by name; `step` holds the step of each."""
        ...


@dataclass(frozen=True)
class Monitor(Part):
    """A measurement during training that does not change the training."""

    @abstractmethod
    def __call__(self, data: Data, ids: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> Watcher:
        """Make the watcher of one training.

        Args:
            data: The training data.
            ids: Ids of the training examples, `[k]`.
            optimizer: The optimizer of the training.
            seed: Seed of all draws, such as the examples to measure on.

        Raises:
            SpecError: The monitor does not support such data.
        """


@dataclass(frozen=True)
class Diagnostic(Part):
    """An estimate about a case before anything is unlearned."""

    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Estimate -> the measured value that it predicts, which is shown with it: `original` or `reference` (knowledge of
    the forget set of these models), or `range` (the difference between the two)."""

    def repeats(self, data: Data) -> bool:
        """Whether it runs on every seed's original; false if it is expensive and hardly differs between seeds."""
        return True

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """What the estimates mean for the choice of a method, in one or two sentences; empty by default.

        Args:
            estimates: The estimates of one call, or their means over seeds.
        """
        return ""

    @abstractmethod
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Estimates by the name of the quantity, in the order of display. A diagnostic never uses references."""


def refuse_model(part: Method | Attack | Audit, model: nn.Module, where: str) -> None:
    """Refuse a model that a part does not support.

    Raises:
        ExpungeError: The part does not support the model; the message starts with `where`.
    """
    try:
        part.check_model(model)
    except ExpungeError as error:
        raise error.at(where) from None


def unmet_needs(method: Method, objective: Objective, model: nn.Module, *, recipe: bool) -> list[str]:
    """The needs of a method that this objective and this model (or one like it) do not meet."""
    have = objective.provides | ({"recipe"} if recipe else set())
    return [*sorted(method.required - have), *(f"the block {name}" for name in method.missing_blocks(model))]


def refuse_objective(needs: frozenset[str], objective: Objective, where: str) -> None:
    """Refuse a part that needs what the objective does not provide.

    Raises:
        SpecError: The message names what is missing, and what the objective provides.
    """
    lacking = sorted(needs - objective.provides)
    if lacking:
        name = type(objective).__name__
        raise SpecError(
            f"needs {', '.join(lacking)}, which the objective {name} does not provide",
            where=where,
            allowed=f"parts that need no more than {', '.join(sorted(objective.provides)) or 'a loss'}",
            remedy="leave it out",
        )


def refuse_unmet(unmet: list[str], where: str) -> None:
    """Refuse a method whose needs are not met.

    Raises:
        MissingError: A need is not met; the message names all of them.
    """
    if unmet:
        lacks_block = unmet[-1].startswith("the block ")
        remedy = "put it into the model: [[model.block]] in a spec, expunge.blocks.put in Python" if lacks_block else ""
        raise MissingError(f"needs {', '.join(unmet)}", where=where, remedy=remedy or "choose another method")


def require_trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to train.

    Raises:
        MissingError: All of them are frozen.
    """
    parameters = trainable(model)
    if not parameters:
        raise MissingError(
            "every parameter is frozen", where=type(model).__name__, remedy="set requires_grad on what may change"
        )
    return parameters
