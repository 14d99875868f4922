"""Find the neurons, heads or weights that hold the forget set by a learned random mask, and remove them.

Each unit has a logit; z = 1, drawn by an estimator of `numerics.estimators`, removes it. Over the logits alone,

    CE(retain) + weight * KL(uniform || forget predictions) + sparsity * expected share of removed units

is minimised, one draw a step for both batches. Model weights are frozen. In the end the units with a logit above 0 are
set to zero: a neuron's row of the weight and its bias, the columns that read a head, or single weights. The forget term
has a lower bound, so that no damage pays beyond a prediction that says nothing (2410.02159 has an unbounded one). The
loss is ours.

A better estimator finds a better mask; it does not make forgetting more certain. That a mask says *where* something is
stored needs masks that agree over seeds: compare them with `overlap`.

Cost: one gradient per retain example and epoch, and one per example of the forget batch with each retain batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from expunge.base.errors import SpecError
from expunge.base.part import Count, NonNegative, Positive
from expunge.blocks.mask import in_order
from expunge.core.job import Job
from expunge.methods._descent import PairedDescent, Steps
from expunge.numerics.estimators import ESTIMATORS, DecoupledST, DecoupledSTGS, Pathwise
from expunge.numerics.matrices import weight_matrix
from expunge.train.loop import PairBatch
from expunge.train.matrices import matrices
from expunge.train.optim import make_optimizer

START = -3.0
"""Initial logits: 5 % of the units are removed in a draw at temperature 1."""


@dataclass(frozen=True)
class LearnedMask(PairedDescent):
    """Removal of the units that a learned mask chooses."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[tuple[str, ...]] = ("shah2024decoupled", "sakarvadia2025mitigating")
    effort: ClassVar[str] = "(R + B) E"
    adapts: ClassVar[bool] = False

    learning_rate: Positive = 0.1
    """Step size of the logits."""
    units: Literal["neuron", "head", "weight"] = "neuron"
    """What is removed: a row of a layer with its bias, which is a channel of a convolution; an attention head, if
    `layers` are the projections that read the heads; or single weights."""
    heads: Count | None = None
    """With `head`: the number of equal groups of columns of each layer, one a head."""
    layers: list[str] = field(default_factory=lambda: ["**"])
    """Paths of the layers to mask, or patterns: `*` matches within one step of a path, `**` any number of steps."""
    weight: Positive = 1.0
    """Weight of the forget loss."""
    sparsity: NonNegative = 1.0
    """Weight of the expected share of removed units."""
    estimator: Literal["identity", "softmax", "st_gs", "decoupled_st_gs", "decoupled_st", "gumbel_rao", "reinmax"] = (
        "decoupled_st"
    )
    """How the logits get their gradient."""
    forward: Positive = 1.0
    """Temperature of the draws."""
    backward: Positive = 1.0
    """Temperature of the gradient; only the two decoupled estimators have one of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backward != 1.0 and not issubclass(ESTIMATORS[self.estimator], DecoupledST | DecoupledSTGS):
            finding = f"found {self.backward}, and {self.estimator} has no backward temperature"
            raise SpecError(finding, where="backward", remedy="take decoupled_st or decoupled_st_gs")
        if (self.units == "head") != (self.heads is not None):
            finding = f"found {self.heads} with units {self.units!r}"
            raise SpecError(finding, where="heads", allowed="a number of heads with units 'head', and only there")

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without layers to mask.

        Raises:
            SpecError: A pattern matches nothing, the weights are on `meta`, or a layer has no such heads.
            MissingError: No layer that matches can be masked.
        """
        for path, layer in matrices(model, self.layers).items():
            if self.heads is not None:
                _require_heads(path, layer, self.heads)

    def choice(self) -> Pathwise:
        """The estimator with its temperatures."""
        kind = ESTIMATORS[self.estimator]
        decoupled = issubclass(kind, DecoupledST | DecoupledSTGS)
        made = kind(self.forward, **({"backward": self.backward} if decoupled else {}))
        assert isinstance(made, Pathwise)
        return made

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Train the logits, then remove what they choose."""
        parameters = list(student.parameters())
        trainable = [parameter.requires_grad for parameter in parameters]
        layers = matrices(student, self.layers)
        gates = {path: LayerGate(layer, self.units, self.heads) for path, layer in layers.items()}
        for parameter in parameters:
            parameter.requires_grad_(False)
        student.eval()
        for gate in gates.values():
            gate.insert()
        try:
            logits = [gate.logits for gate in gates.values()]
            optimizer = make_optimizer(self.optimizer, logits, self.learning_rate, self.weight_decay)
            loss = self._loss(student, job, list(gates.values()))
            Steps(logits, optimizer, job.meter, self.accumulate).run(loss, self.pairs(job))
        finally:
            for gate in gates.values():
                gate.settle()
        for parameter, trains in zip(student.parameters(), trainable, strict=True):
            parameter.requires_grad_(trains)
        return student

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """The loss without a mask, which `apply` calls with masks in the model."""
        objective = job.problem.objective

        def loss(pair: PairBatch) -> Tensor:
            forget = objective.decisions(student, pair.forget).logits
            uniform = -forget.log_softmax(1).mean(1) - torch.tensor(float(forget.shape[1])).log()
            return objective.loss(student, pair.retain) + self.weight * uniform.mean()

        return loss

    def _loss(self, student: nn.Module, job: Job, gates: list[LayerGate]) -> Callable[[PairBatch], Tensor]:
        pair_loss, choice, generator = self.pair_loss(student, job), self.choice(), job.generator("mask")
        count = sum(gate.logits.numel() for gate in gates)

        def loss(pair: PairBatch) -> Tensor:
            for gate in gates:
                gate.draw(choice, generator)
            removed = torch.stack([torch.sigmoid(gate.logits / self.forward).sum() for gate in gates]).sum()
            return pair_loss(pair) + self.sparsity * removed / count

        return loss


class LayerGate:
    """The mask of one layer: its logits, and what stays in the current draw.

    Args:
        layer: A layer with one weight matrix.
        units: `neuron`, `head` or `weight`.
        heads: Number of heads.
    """

    def __init__(self, layer: Any, units: str, heads: int | None = None) -> None:
        self.layer, self.heads = layer, heads
        matrix = weight_matrix(layer)
        shape = {"neuron": matrix.shape[:1], "head": (heads or 0,), "weight": matrix.shape}[units]
        self.logits = nn.Parameter(torch.full(shape, START, dtype=matrix.dtype, device=matrix.device))
        self.stays = torch.ones_like(self.logits)
        self.transposed = self.layer.weight.ndim == 2 and matrix.stride() != self.layer.weight.stride()
        bias = self.layer.bias
        # A frozen bias must stay as it is.
        with_bias = units == "neuron" and bias is not None and bias.requires_grad
        self.names = ["weight", "bias"] if with_bias else ["weight"]

    def insert(self) -> None:
        """From now on the layer's weights are masked."""
        self.order = list(self.layer._parameters)
        for name in self.names:
            parametrize.register_parametrization(self.layer, name, _Masked(self))

    def draw(self, choice: Pathwise, generator: torch.Generator) -> None:
        """Draw what stays until the next draw."""
        self.stays = 1 - choice.bernoulli(self.logits, generator)

    def settle(self) -> None:
        """Remove the units with a positive logit for good, and take the mask out of the layer."""
        self.stays = (self.logits.detach() <= 0).to(self.logits)
        for name in self.names:
            parametrize.remove_parametrizations(self.layer, name, leave_parametrized=True)
        in_order(self.layer._parameters, self.order)

    def on(self, value: Tensor) -> Tensor:
        """What stays, in a shape that broadcasts to a weight or a bias."""
        if value.ndim == 1:
            return self.stays
        if self.heads:
            columns = self.stays.repeat_interleave(value.shape[0 if self.transposed else 1] // self.heads)
            return columns.unsqueeze(1) if self.transposed else columns
        if self.stays.ndim == 2:
            return (self.stays.T if self.transposed else self.stays).reshape(value.shape)
        return self.stays if self.transposed else self.stays.view(-1, *[1] * (value.ndim - 1))


class _Masked(nn.Module):
    """A parametrisation by a gate."""

    def __init__(self, gate: LayerGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, value: Tensor) -> Tensor:
        return value * self.gate.on(value)


def removed_units(
    before: nn.Module, after: nn.Module, layers: list[str] | None = None, heads: int | None = None
) -> dict[str, Tensor]:
    """Units that were removed: neurons, whose row of the weight is zero now and was not before, or heads.

    Args:
        before: The model before.
        after: The model after.
        layers: Paths or patterns of the layers to compare; all by default.
        heads: Compare so many groups of columns, one a head, instead of rows.

    Returns:
        By path of the layer, `[d_out]` or `[heads]` bool.

    Raises:
        SpecError: The heads do not divide a layer's inputs.
    """
    old, new = (matrices(model, layers or ["**"]) for model in (before, after))
    return {path: _zero(path, new[path], heads) & ~_zero(path, old[path], heads) for path in old}


def overlap(masks: list[Mapping[str, Tensor]]) -> float:
    """How well masks of several seeds agree: the mean over pairs of common units divided by units in either.

    Args:
        masks: At least two, by path of the layer, as `removed_units` gives them.

    Returns:
        From 0 to 1; two masks that remove nothing agree.

    Raises:
        SpecError: There are fewer than two masks.
    """
    if len(masks) < 2:
        raise SpecError(f"found {len(masks)} masks", where="overlap", allowed="at least 2")
    flat = [torch.cat([mask[path].flatten() for path in sorted(mask)]) for mask in masks]
    shares = []
    for a, b in combinations(flat, 2):
        either = int((a | b).sum())
        shares.append(int((a & b).sum()) / either if either else 1.0)
    return sum(shares) / len(shares)


def _zero(path: str, layer: nn.Module, heads: int | None) -> Tensor:
    if heads is None:
        return (weight_matrix(layer) == 0).all(1)
    _require_heads(path, layer, heads)
    zero: Tensor = weight_matrix(layer).T.reshape(heads, -1) == 0
    return zero.all(1)


def _require_heads(path: str, layer: nn.Module, heads: int) -> None:
    width = weight_matrix(layer).shape[1]
    if isinstance(layer, nn.modules.conv._ConvNd) or width % heads:
        finding = f"{heads} heads do not divide the {width} inputs of {path!r} ({type(layer).__name__})"
        raise SpecError(finding, where="heads", remedy="name the projections that read the heads, as `layers`")
