"""How a model's outputs are judged: loss, knowledge and utility, each with its unit and direction.

Only an objective interprets targets. Most objectives turn a model and a batch into *decisions*: one per example for a
classifier, one per token for a language model, one per pixel for segmentation. Losses, attacks and audits are functions
of decisions. An objective without decisions (regression, reconstruction) has its own loss and metrics. Parts that need
decisions say so in `needs`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from expunge.base import registry
from expunge.base.errors import MissingError, SpecError
from expunge.base.part import Part
from expunge.core.answers import AnswerRates
from expunge.core.decisions import (
    Decisions,
    correct,
    loss,
    mean_losses,
    per_example,
    share_right,
)
from expunge.core.forward import output_of
from expunge.evidence.estimate import Better

if TYPE_CHECKING:
    from expunge.core.data import Batch, Data

IGNORE = -100
"""Target of a position without a decision (a prompt, padding, an unlabelled pixel), as in PyTorch's cross-entropy."""
DECISIONS, CLASSES, TOKENS, RELABEL = "decisions", "classes", "tokens", "relabel"
"""What an objective can provide and a part may need: decisions; one decision per example; one decision per token; wrong
targets to train on."""


class ByLabel(NamedTuple):
    """Utility of `m` pairs of example and label: the values, the example's row in the batch, and the label, `[m]`."""

    values: Tensor
    example: Tensor
    label: Tensor


@dataclass(frozen=True)
class Metric:
    """A measure with one number per example: its name, unit, direction and use."""

    name: str
    """Name in results, such as `accuracy`."""
    unit: str = "share"
    """Unit of its values, for tables."""
    better: Better = "higher"
    """Which direction is better on data that the model should know."""
    knowledge: bool = False
    """Whether it is judged on the forget set."""
    required: bool = True
    """Whether `erased` depends on it; only if it is knowledge."""
    utility: bool = False
    """Whether it is judged on the sets of `utility_on`. It is also measured on the retain set."""
    utility_on: tuple[str, ...] = ("test",)
    """Sets on which it is utility: `test`, `retain`."""
    bound: float = 0.02
    """Loss of utility, in its unit, that counts as damage."""

    @property
    def sign(self) -> int:
        """+1 if a larger value means more knowledge, -1 if it means less."""
        return -1 if self.better == "lower" else 1


@dataclass(frozen=True)
class Objective(Part):
    """How a model's outputs are judged.

    Raises:
        SpecError: A setting has the wrong type.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    """A subset of `decisions`, `classes`, `tokens` and `relabel`."""
    metrics: ClassVar[tuple[Metric, ...]]
    """The metrics of `measure`, in the order of the tables. Attack curves show the first one with `knowledge`."""
    audits: ClassVar[tuple[str, ...]] = ("performance",)
    """Audits that always run."""
    loss_unit: ClassVar[str] = "nats"
    """Unit of `losses`."""

    output: str | int | None = field(default=None, kw_only=True)
    """Which output holds the predictions if a model returns several: a key, an attribute, or a position in a tuple. By
    default `logits`, if there is one."""

    def bound_to(self, data: Data) -> Self:
        """The objective for such data. Checks the targets, and reads from them what it needs, such as label counts.

        Raises:
            SpecError: The targets do not fit; the message says which.
        """
        return self

    def default_labels(self, targets: Tensor) -> tuple[str, ...]:
        """Names of the labels if the data have none."""
        return ()

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Size of the last dimension of the model's output; known after `bound_to`."""

    def output_size(self, targets: Tensor) -> int:
        """Number of output values of the model per example, which bounds the size of evaluation batches; at least 1.

        Args:
            targets: Targets of the data, `[n, ...]`.
        """
        return max(targets[:1].numel(), self.outputs, 1)

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of each example, `[b]` in float64, with gradients if enabled."""

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The value of each metric per example, `[b]`, by the metric's name."""

    def answers(self, model: nn.Module, batches: Iterable[Batch]) -> Any:
        """What the model answers to unseen examples, for `baseline`; `None` if the objective has no baseline."""
        return None

    def baseline(self, model: nn.Module, batch: Batch, answers: Any) -> dict[str, Tensor]:
        """The value of each knowledge metric that answers independent of the input would have.

        Args:
            model: The model.
            batch: Examples, of the forget set or unseen.
            answers: What `answers` returned for the same model.

        Returns:
            One number per example, `[b]`, by the metric's name; verdicts subtract it. A metric without a baseline is
            left out.
        """
        return {}

    def by_label(self, model: nn.Module, batch: Batch) -> ByLabel | None:
        """Utility by label; `None` if examples have no labels.

        Verdicts judge the worst label too, because the loss of one label hardly changes a mean over many.
        """
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar: the mean over decisions, or over examples if there are none."""
        return self.losses(model, batch).mean()

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """The model's decisions on a batch, with gradients if enabled.

        Raises:
            MissingError: This objective has no decisions.
        """
        name = type(self).__name__
        raise MissingError(
            f"{name} makes no decisions", where="objective", remedy="choose a part that does not need them"
        )

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with wrong targets instead of its own.

        Raises:
            MissingError: This objective has no wrong targets.
        """
        name = type(self).__name__
        raise MissingError(f"{name} has no wrong targets", where="objective", remedy="choose another method")

    def per_decision(self, features: Tensor, batch: Batch) -> Tensor | None:
        """One row of features per decision, `[n, ...]`, from a layer's output; `None` if it has no such rows."""
        return features if len(features) == batch.size else None

    def known(self, model: nn.Module, batch: Batch) -> Tensor:
        """The values of an attack's curve, `[b]`; larger means more knowledge."""
        metric = self.tracked
        return metric.sign * self.measure(model, batch)[metric.name]

    @property
    def tracked(self) -> Metric:
        """The metric of attack curves."""
        return next(metric for metric in self.metrics if metric.knowledge)

    def prediction(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's output on a batch: the one that `output` names."""
        return output_of(model, batch, self.output)


@dataclass(frozen=True)
class Deciding(Objective):
    """Base of objectives with decisions. The loss is cross-entropy, the metric is the share of right decisions."""

    provides: ClassVar[frozenset[str]] = frozenset({DECISIONS, RELABEL})
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", knowledge=True, utility=True),)

    @abstractmethod
    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """The model's decisions on a batch, with gradients if enabled."""

    def prediction(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's logits on a batch.

        Raises:
            SpecError: They are complex.
        """
        logits = super().prediction(model, batch)
        if logits.is_complex():
            raise SpecError(
                f"its outputs are {logits.dtype}",
                where=f"model ({type(model).__name__})",
                allowed="real logits; weights and hidden layers may be complex",
                remedy="return .abs() or .real of the outputs",
            )
        return logits

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy over decisions, in nats."""
        return loss(self.decisions(model, batch))

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of each example's decisions, `[b]` in float64, in nats."""
        return mean_losses(self.decisions(model, batch), batch.size)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Share of each example's decisions that are right: 0 or 1 for a classifier."""
        decisions = self.decisions(model, batch)
        return {"accuracy": share_right(decisions, batch.size)}

    def questions(self, batch: Batch, decisions: Decisions) -> Tensor:
        """Which of several separate questions each decision answers, `[n]`; all 0 if there is only one question."""
        return torch.zeros_like(decisions.targets)

    def answers(self, model: nn.Module, batches: Iterable[Batch]) -> AnswerRates:
        """How often each answer is given to unseen examples with another right answer."""
        rates = AnswerRates()
        for batch in batches:
            decisions = self.decisions(model, batch)
            rates.add(decisions, self.questions(batch, decisions))
        return rates

    def baseline(self, model: nn.Module, batch: Batch, answers: AnswerRates) -> dict[str, Tensor]:
        """Mean rate, over an example's decisions, at which its right answers are given where they are wrong."""
        decisions = self.decisions(model, batch)
        rates, _ = answers.rates(decisions.targets, self.questions(batch, decisions))
        return {"accuracy": per_example(rates, decisions.example.cpu(), batch.size, mean=True)}

    def by_label(self, model: nn.Module, batch: Batch) -> ByLabel | None:
        """Share of each example's decisions that are right, by question and right answer."""
        decisions = self.decisions(model, batch)
        labels = decisions.logits.shape[1]
        width = labels * self.question_count
        cell = decisions.example * width + self.questions(batch, decisions) * labels + decisions.targets
        cells, inverse = cell.unique(return_inverse=True)
        shares = per_example(correct(decisions).double(), inverse, len(cells), mean=True)
        return ByLabel(shares, cells // width, cells % width)

    @property
    def question_count(self) -> int:
        """Number of separate questions, see `questions`."""
        return 1


def inferred(inputs: object, targets: Tensor) -> Objective | None:
    """The objective that the shapes and types of the data suggest; `None` if they are ambiguous.

    Whole numbers `[n]` are classes, whole numbers `[n, t]` with input tokens of that shape are next tokens, and
    fractions `[n]` or `[n, k]` are regression targets.
    """
    if targets.is_complex():
        name = None
    elif targets.is_floating_point():
        # Whole numbers in floating point may also be classes.
        whole = bool((targets == targets.round()).all())
        name = None if whole or targets.ndim > 2 else "regression"
    elif targets.ndim == 1:
        name = "classification"
    else:
        tokens = isinstance(inputs, Tensor) and not inputs.is_floating_point() and inputs.shape == targets.shape
        name = "language_modelling" if tokens else None
    if name is None:
        return None
    objective: Objective = registry.build("objective", name, {}, where="objective")  # type: ignore[assignment]
    return objective


def wrong_width(model: nn.Module, output: Tensor, wanted: str, width: int) -> SpecError:
    """The error for a model whose last layer does not fit the data."""
    return SpecError(
        f"the model's output has shape {list(output.shape)}",
        where=f"model ({type(model).__name__})",
        allowed=wanted,
        remedy=f"its last layer must have {width} outputs, one per label of the data",
    )
