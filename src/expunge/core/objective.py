"""How a model's outputs are judged: loss, knowledge and utility, each with its unit and direction.

An objective is the one place that knows what a task's targets mean. Most objectives turn a model and a batch into
*decisions*: one per example for a classifier, one per token for a language model, one per pixel for segmentation.
Losses, attacks and audits are functions of decisions. An objective without decisions (regression, reconstruction) has
a loss and metrics of its own; parts that need decisions say so in `needs`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base import registry
from expunge.base.errors import MissingError, SpecError
from expunge.base.part import Part
from expunge.core.forward import output_of
from expunge.evidence.estimate import Better

if TYPE_CHECKING:
    from expunge.core.data import Batch, Data

IGNORE = -100
"""Target that is no decision (a prompt, padding, an unlabelled pixel); PyTorch's cross-entropy ignores it too."""
DECISIONS, CLASSES, TOKENS, RELABEL = "decisions", "classes", "tokens", "relabel"
"""What an objective can provide, and what a part may need: decisions; one decision per example; one per token; wrong
targets to train on."""


class Decisions(NamedTuple):
    """`n` decisions: logits `[n, c]`, the right answer of each `[n]`, and the row of the batch it belongs to `[n]`."""

    logits: Tensor
    targets: Tensor
    example: Tensor


@dataclass(frozen=True)
class Metric:
    """What a number per example means."""

    name: str
    """Name in results, such as `accuracy`."""
    unit: str = "share"
    """Unit of its values, for tables."""
    better: Better = "higher"
    """Direction on data that should be known."""
    knowledge: bool = False
    """Whether it is judged on the forget set, and required for `erased`."""
    utility: bool = False
    """Whether it is judged on the test set; it is then also measured on the retain set."""
    bound: float = 0.02
    """Loss of utility, in its unit, that counts as damage."""

    @property
    def sign(self) -> int:
        """+1 where a larger value means that more is known, -1 where it means less."""
        return -1 if self.better == "lower" else 1


@dataclass(frozen=True)
class Objective(Part):
    """What a model's outputs are judged by.

    Raises:
        SpecError: A setting has the wrong type.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    """Of `decisions`, `classes`, `tokens` and `relabel`."""
    metrics: ClassVar[tuple[Metric, ...]]
    """What `measure` returns, in the order of the tables. Attack curves follow the last one that is knowledge."""
    audits: ClassVar[tuple[str, ...]] = ("performance",)
    """Audits that run whatever the spec says."""
    loss_unit: ClassVar[str] = "nats"
    """Unit of `losses`."""

    output: str | int | None = field(default=None, kw_only=True)
    """Which output holds the predictions, where a model returns several: a key, an attribute, or a position in a tuple.
    By default `logits` where there is one."""

    def bound_to(self, data: Data) -> Self:
        """The objective for such data: checks the targets and takes from them what it needs, such as label counts.

        Raises:
            SpecError: The targets do not fit; says which.
        """
        return self

    def default_labels(self, targets: Tensor) -> tuple[str, ...]:
        """Names of the labels where the data give none."""
        return ()

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many outputs a model of such data has in its last dimension; known once bound to data."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of each example, `[b]` in float64, with gradients where enabled."""

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The value of each metric per example, `[b]`, by the metric's name."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar: the mean over examples, or over decisions where there are any."""
        return self.losses(model, batch).mean()

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """The decisions that the model makes on a batch, with gradients where enabled.

        Raises:
            MissingError: This objective has none.
        """
        name = type(self).__name__
        raise MissingError(f"{name} makes no decisions", where="objective", remedy="choose a part that needs none")

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with wrong targets in the place of its own.

        Raises:
            MissingError: A wrong target means nothing here.
        """
        name = type(self).__name__
        raise MissingError(f"{name} has no wrong targets", where="objective", remedy="choose another method")

    def per_decision(self, features: Tensor, batch: Batch) -> Tensor | None:
        """One row of features per decision, `[n, ...]`, from a layer's output; `None` where it does not hold that."""
        return features if len(features) == batch.size else None

    def known(self, model: nn.Module, batch: Batch) -> Tensor:
        """What an attack's curve follows, `[b]`, larger means that more is known."""
        metric = self.tracked
        return metric.sign * self.measure(model, batch)[metric.name]

    @property
    def tracked(self) -> Metric:
        """The metric that attack curves follow."""
        return [metric for metric in self.metrics if metric.knowledge][-1]

    def prediction(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's output on a batch, the part of it that `output` names."""
        return output_of(model, batch, self.output)


@dataclass(frozen=True)
class Deciding(Objective):
    """Base of the objectives that make decisions: their loss is cross-entropy, their metric the share that is right."""

    provides: ClassVar[frozenset[str]] = frozenset({DECISIONS, RELABEL})
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", knowledge=True, utility=True),)

    @abstractmethod
    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """The decisions that the model makes on a batch, with gradients where enabled."""

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


def inferred(inputs: object, targets: Tensor) -> Objective | None:
    """The objective that the shapes and types of the data suggest; `None` where they suggest none.

    Whole numbers `[n]` are classes, whole numbers `[n, t]` beside tokens of that shape are next tokens, and
    fractions `[n]` or `[n, k]` are regression targets.
    """
    if targets.is_complex():
        name = None
    elif targets.is_floating_point():
        # Whole numbers in floating point may as well be classes.
        whole = bool((targets == targets.round()).all())
        name = None if whole or targets.ndim > 2 else "regression"
    elif targets.ndim == 1:
        name = "classification"
    else:
        tokens = isinstance(inputs, Tensor) and not inputs.is_floating_point() and inputs.shape == targets.shape
        name = "language_modelling" if tokens else None
    if name is None:
        return None
    made: Objective = registry.build("objective", name, {}, where="objective")  # type: ignore[assignment]
    return made


def loss(decisions: Decisions) -> Tensor:
    """Mean cross-entropy over decisions, in nats."""
    return F.cross_entropy(decisions.logits, decisions.targets)


def decision_losses(decisions: Decisions) -> Tensor:
    """Cross-entropy of each decision, `[n]`, in nats."""
    return F.cross_entropy(decisions.logits, decisions.targets, reduction="none")


def per_example(values: Tensor, example: Tensor, size: int, *, mean: bool = False) -> Tensor:
    """Sum (or mean) of each example's decisions.

    Args:
        values: One number per decision, `[n]`.
        example: Row of the batch that each decision belongs to, `[n]`.
        size: Number of examples in the batch.
        mean: Divide by each example's number of decisions.

    Returns:
        One number per example, `[size]`; an example without decisions has the sum 0 and no mean, NaN.
    """
    total = torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, example, values)
    return total / torch.bincount(example, minlength=size) if mean else total


def mean_losses(decisions: Decisions, size: int) -> Tensor:
    """Mean cross-entropy of each example's decisions, `[size]` in float64, in nats."""
    return per_example(decision_losses(decisions).double(), decisions.example, size, mean=True)


def correct(decisions: Decisions) -> Tensor:
    """Whether the largest logit is the right one, per decision, `[n]` bool."""
    return decisions.logits.argmax(1) == decisions.targets


def share_right(decisions: Decisions, size: int) -> Tensor:
    """Share of each example's decisions that are right, `[size]` float64."""
    return per_example(correct(decisions).double(), decisions.example, size, mean=True)


def knows(decisions: Decisions, size: int) -> Tensor:
    """Whether *all* decisions of an example are right, and there are any, `[size]` bool.

    For a language model under teacher forcing this is the same as reciting the example by greedy decoding: the first
    wrong token of either is the same one.
    """
    wrong = per_example((~correct(decisions)).long(), decisions.example, size)
    return (wrong == 0) & (torch.bincount(decisions.example, minlength=size) > 0)


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """Mean over decisions of KL(reference || model) in nats, from logits `[n, c]`; a sum, not a mean, over classes."""
    return F.kl_div(F.log_softmax(logits, 1), F.log_softmax(reference, 1), reduction="batchmean", log_target=True)


def wrong_width(model: nn.Module, output: Tensor, wanted: str, width: int) -> SpecError:
    """The error for a model whose last layer does not fit the data."""
    return SpecError(
        f"the model's output has shape {list(output.shape)}",
        where=f"model ({type(model).__name__})",
        allowed=wanted,
        remedy=f"its last layer must have {width} outputs, one per label of the data",
    )
