"""The training loop: it counts steps, reports them, respects a budget, and stops if the loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from expunge.base.errors import RunError
from expunge.core.case import Meter
from expunge.core.data import Batch, Data
from expunge.core.decisions import OUTPUT_VALUES
from expunge.core.positions import decided_only
from expunge.core.recompute import micro_batches
from expunge.numerics.norms import sound_norms

EVALUATED = 512
"""Most examples per forward pass of an evaluation."""


class Sized(Protocol):
    """Anything with a number of examples: a batch, or a pair of batches."""

    @property
    def size(self) -> int:
        """Number of examples."""
        ...


Item = TypeVar("Item", bound=Sized)


@dataclass(frozen=True)
class PairBatch:
    """A retain batch and a forget batch for one step."""

    retain: Batch
    forget: Batch

    @property
    def size(self) -> int:
        """Examples in both."""
        return self.retain.size + self.forget.size


@dataclass(frozen=True)
class Fit:
    """Result of the loop: steps taken, the last loss, and whether the budget ended it."""

    steps: int
    loss: float
    exhausted: bool


def fit(
    parameters: Sequence[nn.Parameter],
    loss_fn: Callable[[Item], Tensor],
    batches: Iterable[Item],
    optimizer: torch.optim.Optimizer,
    *,
    meter: Meter | None = None,
    schedule: Callable[[int], float] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    clip: float | None = None,
    accumulate: int = 1,
) -> Fit:
    """Take one optimiser step per batch.

    Args:
        parameters: The trained parameters; used for clipping and for messages.
        loss_fn: Maps a batch to a scalar loss.
        batches: The training batches; each has a `size` in examples.
        optimizer: Holds the parameters.
        meter: Charged with each batch's size; the loop ends before a step that would exceed its limit.
        schedule: Maps the step (from 0) to a factor on each group's learning rate.
        on_step: Called after each step with the number of steps taken and the loss.
        clip: Largest norm of the gradient; `None` for no clipping.
        accumulate: Number of micro-batches per batch, to save memory; the loss is that of the whole batch.

    Returns:
        Steps, last loss, and whether the budget ended the loop.

    Raises:
        RunError: The loss is not finite; names step, learning rate and the last finite loss.
    """
    meter = meter or Meter()
    rates = [group["lr"] for group in optimizer.param_groups]
    step, last = 0, math.nan
    for item in batches:
        if not meter.affords(item.size):
            _require_finite(parameters, step, rates[0], last)
            return Fit(step, last, exhausted=True)
        if schedule is not None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step)
        optimizer.zero_grad(set_to_none=True)
        with micro_batches(accumulate), decided_only(), sound_norms():
            loss = loss_fn(item)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(step, rates[0], last)
        optimizer.step()
        meter.charge(item.size)
        step, last = step + 1, value
        if on_step is not None:
            on_step(step, value)
    _require_finite(parameters, step, rates[0], last)
    return Fit(step, last, exhausted=False)


def batches(data: Data, ids: Tensor, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Batch]:
    """Shuffled batches with the data's augmentations, a new order each epoch, cut as `chunks` says."""
    for _ in range(epochs):
        order = ids[torch.randperm(len(ids), generator=generator)]
        yield from data.stream(chunks(order, batch_size), generator)


def chunks(order: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Cut the order of one epoch into batches, of which the last may be smaller.

    If one example is left over, the last batch has it in addition. A batch of its own would give this example the
    weight of a whole batch, and batch norm cannot train on it.
    """
    count = batch_count(len(order), batch_size)
    whole = max(count - 1, 0) * batch_size
    return order.split([batch_size] * (count - 1) + [len(order) - whole]) if count else ()


def batch_count(examples: int, batch_size: int) -> int:
    """Number of batches per epoch that `chunks` makes of this number of examples."""
    full, rest = divmod(examples, batch_size)
    return full + (rest > 1 or examples == 1 < batch_size)


def paired(
    data: Data,
    retain: Tensor,
    forget: Tensor,
    batch_size: int,
    forget_batch_size: int,
    epochs: int,
    generator: torch.Generator,
) -> Iterator[PairBatch]:
    """Each retain batch of each epoch, paired with a forget batch; each pass over the forget set is reshuffled."""
    cycle = endless(data, forget, forget_batch_size, generator)
    for batch in batches(data, retain, batch_size, epochs, generator):
        yield PairBatch(batch, next(cycle))


def endless(data: Data, ids: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Shuffled batches without end, reshuffled at each pass; a batch is at most as large as the set."""
    while True:
        yield from batches(data, ids, min(batch_size, len(ids)), 1, generator)


def mean_batch(examples: int, batch_size: int) -> float:
    """Mean number of examples per batch of a set."""
    return examples / max(batch_count(examples, batch_size), 1)


def in_order(data: Data, ids: Tensor, batch_size: int | None = None) -> Iterator[Batch]:
    """Batches in the order of the ids, for evaluation, without augmentation; by default of `evaluation_size`."""
    yield from data.stream(ids.split(batch_size or evaluation_size(data)))


def evaluation_size(data: Data) -> int:
    """Examples per forward pass of an evaluation: 512, or fewer if their outputs would exceed `OUTPUT_VALUES`.

    A text of 128 tokens has 6.3 million logits over a vocabulary of 49,152, so 2 texts run together.
    """
    per_example = 1 if data.objective is None else data.objective.output_size(data.targets)
    return min(max(OUTPUT_VALUES // per_example, 1), EVALUATED)


def _require_finite(parameters: Sequence[nn.Parameter], step: int, rate: float, last: float) -> None:
    """Check the parameters: the loss is checked before each step, so the last step shows only in the parameters."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise _diverged(step, rate, last)


def _diverged(step: int, rate: float, last: float) -> RunError:
    seen = "no loss before it was finite" if math.isnan(last) else f"the last finite loss was {last:.4g}"
    return RunError(
        f"the loss is not finite at step {step} with learning rate {rate:g}; {seen}",
        where="training",
        remedy="lower learning_rate",
    )
