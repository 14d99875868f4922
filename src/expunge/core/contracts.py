"""What a block, a task, a method, an attack and an audit are: abstract here, final in the files that hold one each."""

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
            MissingError: It is not on this machine; says how to get it.
        """


@dataclass(frozen=True)
class Augmentation(Part):
    """A random change of inputs that training, unlearning and attacks see, and evaluation does not."""

    @abstractmethod
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The changed inputs of a batch, `[b, ...]`, in the same shape; everything random comes from the generator."""


@dataclass(frozen=True)
class Architecture(Part):
    """A model family."""

    @abstractmethod
    def __call__(self, data: Data) -> nn.Module:
        """A freshly initialised model for such data; draws from torch's global generator, which the caller seeds."""

    def original(self, data: Data) -> nn.Module | None:
        """The user's own trained model, where the settings name one; `None`: originals are trained from fresh ones."""
        return None

    def original_digest(self) -> str | None:
        """Content address of the weights that `original` returns; with one, the verdict is about that model alone."""
        return None


@dataclass(frozen=True)
class Block(Part):
    """Something to be put into a model, behind a module that it has."""

    preserves: ClassVar[bool] = False
    """Whether the outputs of any model must be the same with it as without, which is then checked."""

    @abstractmethod
    def __call__(self, model: nn.Module, path: str) -> nn.Module | None:
        """What is to run on the output of the module at this path.

        Args:
            model: The model, to be asked for sizes.
            path: Of the module, as in `model.named_modules()`.

        Returns:
            A module from a tensor to a tensor of the same shape, which is run in training and in evaluation; `None`
            where the block changed the model itself and nothing is to be run.

        Raises:
            SpecError: It does not fit there.
        """


@dataclass(frozen=True)
class Task(Part):
    """What is to be forgotten."""

    measures: ClassVar[bool] = False
    """Whether `measure` returns anything."""

    def measure(self, data: Data, recipe: Recipe, seed: int) -> Mapping[str, Tensor]:
        """Statistics that take training to obtain, such as C-scores; cached apart from the construction itself."""
        return {}

    @abstractmethod
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """Construct the problem from the data and what `measure` returned.

        Raises:
            SpecError: The data cannot carry this task.
        """


@dataclass(frozen=True)
class Method(Part):
    """A way to unlearn. Its call copies the model, seeds, counts and times; `apply` does the work on the copy."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What it cannot do without: `recipe`, or what an objective provides, of `decisions`, `classes`, `tokens` and
    `relabel`."""
    blocks: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Modules that blocks put into a model and that it cannot do without, such as `TiedLayer`."""
    paper: ClassVar[str] = ""
    """Name and year of the source, for tables."""
    effort: ClassVar[str] = ""
    """What it costs in short, for tables, in the letters that `expunge list methods` explains; the file's text says it
    in full."""
    priced: ClassVar[bool] = True
    """Whether what its call counts is what unlearning cost; not for a model that was unlearned elsewhere."""
    repeatable: ClassVar[bool] = True
    """Whether it can be run again on a model of its kind, as audits by shadow models need; a file's content cannot."""
    measures: ClassVar[bool] = False
    """Whether `measure` returns anything."""

    @property
    def required(self) -> frozenset[str]:
        """What these settings cannot do without; `needs` unless a setting adds to it."""
        return self.needs

    @property
    def ascent(self) -> float | None:
        """Weight of the forget set's ascent, where plain descent on the retain set with it is all that the method does.

        Diagnostics of stability predict what such a plan does; none by default.
        """
        return None

    def unmet(self, problem: Problem, recipe: Recipe | None, model: nn.Module) -> list[str]:
        """The needs that this problem, recipe and model do not meet."""
        return unmet_needs(self, problem.objective, model, recipe=recipe is not None)

    def missing_blocks(self, model: nn.Module) -> list[str]:
        """Those of `blocks` that the model does not have; a method that puts one in where it lacks overrides this."""
        return [kind.__name__ for kind in self.blocks if not any(isinstance(m, kind) for m in model.modules())]

    def check(self, problem: Problem) -> None:
        """Refuse a problem that the settings do not fit, before anything is trained.

        Raises:
            ExpungeError: Says which setting.
        """
        return

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that the method cannot work on, before anything is trained.

        Raises:
            ExpungeError: Says what it is about the model.
        """
        return

    def expected_gradients(self, retain: int, forget: int) -> float:
        """Per-example gradients that a run is expected to take, for the forecast of `run --dry-run`.

        By default a pass over both sets, once or as often as the setting `epochs` says. Override it where that is not
        so. A method that needs the recipe is taken for one training and is not asked.

        Args:
            retain: Examples in the retain set.
            forget: Examples in the forget set.

        Returns:
            Right within a factor of two; the upper bound where a rule may stop earlier.
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
            model: The model that knows it; never changed.
            problem: What is to be forgotten.
            recipe: How such models are trained.
            seed: Everything random in the method follows from it.
            budget: Upper bound in per-example gradients.
            statistics: What `measure` returned for this model; without them it is asked here, and its cost is added.

        Returns:
            The unlearned model in evaluation mode, with its cost.

        Raises:
            MissingError: The method needs what the problem or the model does not have.
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
        """Change the student, or make another model, and return it; charge `job.meter` for every gradient."""


@dataclass(frozen=True)
class Attack(Part):
    """A way to bring forgotten knowledge back; may use `problem.retain` and `problem.exposed`, never `unexposed`."""

    def check(self, problem: Problem) -> None:
        """Refuse a problem that the settings do not fit, before anything is trained.

        Raises:
            SpecError: Says which setting.
        """
        return

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that lacks what the attack changes, before anything is trained.

        Raises:
            MissingError: Says what it lacks.
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
    """A measurement of a model against its case."""

    after_attack: ClassVar[bool] = True
    """Whether it makes sense again on a model that was attacked."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the objective must provide: `"decisions"`, `"classes"` or `"tokens"`."""

    @property
    def shadow_pairs(self) -> int:
        """How many models of either kind `case.shadows` must hold; attacked like the model where it was."""
        return 0

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that cannot be measured, before anything is trained.

        Raises:
            ExpungeError: Says what it is about the model.
        """
        return

    @abstractmethod
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Scores per example, id by id, for each split that it looks at."""


class Watcher(Protocol):
    """What a monitor makes for one training: called after each step, it measures now and then and keeps plain lists."""

    def __call__(self, step: int, model: nn.Module) -> None:
        """Look at the model after so many steps, and leave it as it is."""
        ...

    @property
    def record(self) -> Mapping[str, Sequence[float]]:
        """Everything that was measured, by name; `step` says when."""
        ...


@dataclass(frozen=True)
class Monitor(Part):
    """Something to be measured while a model trains, without changing how it trains."""

    @abstractmethod
    def __call__(self, data: Data, ids: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> Watcher:
        """A watcher of one training.

        Args:
            data: What the model is trained on.
            ids: Which examples, `[k]`.
            optimizer: Takes the steps.
            seed: Of whatever is drawn, such as the examples to measure on.

        Raises:
            SpecError: It cannot measure on such data.
        """


@dataclass(frozen=True)
class Diagnostic(Part):
    """Something that can be said of a case before anything is unlearned."""

    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Estimate -> what of the run it should be near, shown beside it: `original` or `reference`, what these models know
    of the forget set, or `range`, what there is to forget."""

    def repeats(self, data: Data) -> bool:
        """Whether it is run on every seed's original; where it is expensive and hardly differs, the first is enough."""
        return True

    def summary(self, found: Mapping[str, Estimate]) -> str:
        """What its estimates mean for whoever is about to unlearn, in a sentence or two; nothing by default.

        Args:
            found: What the call returned, or the means of it over seeds.
        """
        return ""

    @abstractmethod
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Estimates by what they are of, in the order in which they are shown; never looks at references."""


def refuse_model(part: Method | Attack | Audit, model: nn.Module, where: str) -> None:
    """Ask a part whether it can work on a model.

    Raises:
        ExpungeError: It cannot; begins with `where`.
    """
    try:
        part.check_model(model)
    except ExpungeError as error:
        raise error.at(where) from None


def unmet_needs(method: Method, objective: Objective, model: nn.Module, *, recipe: bool) -> list[str]:
    """What a method needs that this objective and this model, or one like it, do not have."""
    have = objective.provides | ({"recipe"} if recipe else set())
    return [*sorted(method.required - have), *(f"the block {name}" for name in method.missing_blocks(model))]


def refuse_objective(needs: frozenset[str], objective: Objective, where: str) -> None:
    """Refuse a part that needs what the objective does not provide.

    Raises:
        SpecError: Names what is lacking, and what there is.
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
        MissingError: There are some; names them.
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
