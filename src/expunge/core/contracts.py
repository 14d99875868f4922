"""Abstract base classes of all parts: data sets, models, blocks, tasks, methods, attacks, audits and diagnostics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from expunge.base.part import Part
from expunge.core.case import Attacked, Case, Recipe
from expunge.core.data import Data
from expunge.core.problem import Problem
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
    replaces: ClassVar[bool] = False
    """Whether the block replaces modules of the model, whose weights then go."""

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
class Attack(Part):
    """A way to recover forgotten knowledge. It may use `problem.retain` and `problem.exposed`, never `unexposed`."""

    trains: ClassVar[bool] = False
    """Whether it trains the model. Only such an attack can wake dormant knowledge, so `erased` needs one."""
    control: ClassVar[bool] = False
    """Whether the original is attacked too. An attack that trains on nothing, but may destroy what any model knows, is
    believed only if the original survives it."""

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

    def check(self, problem: Problem) -> None:
        """Refuse, before anything is trained, a problem that the audit does not suit.

        Raises:
            SpecError: The problem is not suitable; the message says why.
        """
        return

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

    by_default: ClassVar[bool] = True
    """Whether it runs where no diagnostic is named."""
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

    def proposal(self, estimates: Mapping[str, Estimate]) -> list[dict[str, Any]]:
        """Methods that the estimates recommend, as `[[method]]` tables of a spec; none by default."""
        return []

    @abstractmethod
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Estimates by the name of the quantity, in the order of display. A diagnostic never uses references."""
