"""What a method is: its call copies, seeds, counts and times; `apply` does the work on the copy."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Part
from expunge.core.case import Cost, Meter, Recipe, Unlearned, copy_for_training
from expunge.core.job import Job
from expunge.core.modules import first_parameter
from expunge.core.norms import unlearning
from expunge.core.problem import Problem
from expunge.core.refusals import refuse_model, refuse_unmet, unmet_needs
from expunge.core.seeding import forked


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
    stronger: ClassVar[tuple[str, float]] = ("learning_rate", 2.0)
    """The setting to change if the method forgets too little, and the factor of the next try. The report proposes it,
    and the inverse if the method damages the model. Where this setting does not exist, it proposes `epochs`."""
    priced: ClassVar[bool] = True
    """Whether the gradients counted in its call are the cost of unlearning; false if the model was unlearned
    elsewhere."""
    repeatable: ClassVar[bool] = True
    """Whether it can run again on shadow models, as some audits need; false for a method that reads weights from a
    file."""
    measures: ClassVar[bool] = False
    """Whether `measure` returns anything."""
    adapts: ClassVar[bool] = False
    """Whether it changes the model by gradient steps alone, so that it may train an adapter instead of the weights."""

    held: ClassVar[float] = 0.0
    """Further copies of all weights that a call holds beside its input and the student, as a forecast of memory counts
    them: teachers, importances, saved states. Gradients and the optimiser's states are counted apart."""

    @property
    def held_copies(self) -> float:
        """`held`, unless a setting changes it."""
        return self.held

    @property
    def together(self) -> tuple[int, int]:
        """Examples whose activations a step holds at the same time, and from how many graphs; 0 without steps."""
        return int(getattr(self, "batch_size", 0)), 1

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
        original: nn.Module | None = None,
    ) -> Unlearned:
        """Unlearn the problem's forget set.

        Args:
            model: The model to start from: the original, or what another method made of it. Never changed.
            problem: The problem with the forget set.
            recipe: How such models are trained.
            seed: Everything random in the method follows from it.
            budget: Upper bound in per-example gradients.
            statistics: What `measure` returned for this model; without them it is asked here, and its cost is added.
            original: The model that was trained on the forget set; by default `model`. Never changed.

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
            original = model if original is None else original
            job = Job(problem, recipe, seed, meter, first_parameter(student).device, original)
            if self.measures and statistics is None:
                statistics = self._measured(model, job)
            job = replace(job, statistics={n: t.to(job.device) for n, t in (statistics or {}).items()})
            with unlearning(problem.forget):
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


def original_of(part: Any, original: nn.Module) -> dict[str, nn.Module]:
    """Keywords for the call of a method: the case's original. A plain function gets none, and sees its input only."""
    return {"original": original} if isinstance(part, Method) else {}
