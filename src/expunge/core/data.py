"""Examples with stable ids: inputs of any form, and targets that the objective interprets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.lazy import LazyInputs
from expunge.core.objective import CLASSES, IGNORE, TOKENS, Objective, inferred

if TYPE_CHECKING:
    from expunge.core.choices import MultipleChoice
    from expunge.core.tokens import Tokenizer

__all__ = ["IGNORE", "Batch", "Data", "check_ids", "joined", "ranges"]

Inputs = Any
"""One tensor `[n, ...]`, a tuple of them (positional arguments of the model), a mapping (arguments by name), or
`LazyInputs`, which are read on demand."""
MOST_LABELS, FEW_MISSING = 1_000_000, 10
"""Bounds on labels that have no names: their number, and how many of them may lack examples without being a mistake."""
MOST_RANGES = 4
"""A message lists at most this many ranges of ids."""
Augment = Callable[[Any, torch.Generator], Any]
"""A function of a batch's inputs and a generator; it returns changed inputs of the same shape."""


class Batch(NamedTuple):
    """Some examples: inputs `[b, ...]`, targets `[b, ...]`, ids `[b]`."""

    inputs: Inputs
    targets: Tensor
    ids: Tensor

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.ids)

    def chunk(self, count: int) -> list[Batch]:
        """Split into `count` batches of about the same size, in order; at most one per example."""
        rows = torch.arange(self.size).chunk(count)
        return [Batch(rows_of(self.inputs, at), self.targets[at], self.ids[at]) for at in rows]


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all examples. Texts get padding, which is no decision, up to the widest batch."""
    if batches[0].targets.ndim == 2:
        width = max(batch.targets.shape[1] for batch in batches)
        batches = [_widened(batch, width) for batch in batches]
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _widened(batch: Batch, width: int) -> Batch:
    missing = (0, width - batch.targets.shape[1])
    if missing[1] == 0:
        return batch
    targets = nn.functional.pad(batch.targets, missing, value=IGNORE)
    return batch._replace(inputs=nn.functional.pad(batch.inputs, missing), targets=targets)


@dataclass(frozen=True)
class Data:
    """A data set: one pool of examples with ids, some for training and some for test.

    Args:
        inputs: Images or vectors `[n, ...]` (floating point), tokens `[n, t]` (int64), or, for models with several
            inputs, a tuple or a mapping of these.
        targets: Targets of the objective: class indices `[n]`, next tokens `[n, t]` (`IGNORE` at positions without
            one), masks, or numbers.
        train: Ids of the training examples, `[k]` int64.
        test: Ids of the test examples, `[m]` int64.
        labels: Names of the classes, in order; for tokens the vocabulary. By default their numbers.
        groups: Group of each example, `[n]` int64. Examples of a group are copies or relatives, and are never split
            between sets; an interval counts a group as one example. By default each example is its own group.
        cscore: C-scores that come with the data, `[n]`, NaN if an example has none. By default they are computed if
            needed.
        objective: How models are judged; by default inferred from the targets, if they are unambiguous.
        augmentations: Applied in turn to every batch of a step of training, unlearning or an attack, but not in
            evaluation.
        tokenizer: Makes text of tokens, for the report and for a folder that ships; `None` if the data are no texts, or
            if nobody knows how they were encoded.
        lengths: For tokens in memory, the length of each text without the padding on its right, `[n]` int64. A batch
            is then as wide as its longest text. The outputs of a causal model do not depend on what is cut.
        forget: Ids to forget, where the data themselves say so; the task `given` takes them.
        holdout: Ids of unseen examples that resemble these.
        paraphrases: Ids of texts with the facts of training texts in other words, on which no model trains. Their
            groups are those of these texts.
        questions: Ids of questions about what must be forgotten, on which no model trains, such as those of a benchmark
            about its documents.
        values: For texts, which targets are tokens of a fact, such as a town in an answer, `[n, t]` bool; `None` if
            nobody says which are.
        choices: For questions with several answers to choose from, the question of each example, `[n]`; `None` for an
            example without options.

    Raises:
        SpecError: A value is not finite, the objective refuses the targets, or shapes do not match.
    """

    inputs: Inputs
    targets: Tensor
    train: Tensor
    test: Tensor
    labels: tuple[str, ...] = ()
    groups: Tensor | None = None
    cscore: Tensor | None = None
    objective: Any = None
    """An `Objective`; `None` only if it cannot be inferred, until `judged_by` sets it."""
    augmentations: tuple[Augment, ...] = ()
    tokenizer: Tokenizer | None = None
    lengths: Tensor | None = None
    forget: Tensor | None = None
    holdout: Tensor | None = None
    paraphrases: Tensor | None = None
    questions: Tensor | None = None
    values: Tensor | None = None
    choices: tuple[MultipleChoice | None, ...] | None = None

    def __post_init__(self) -> None:
        self._check_lengths()
        _check_finite(self.inputs, len(self))
        for name in ("train", "test"):
            check_ids(getattr(self, name), len(self), where=f"data.{name}")
        object.__setattr__(self, "given_labels", self.labels)
        objective = self.objective or inferred(self.inputs, self.targets)
        if objective is not None:
            if not self.labels:
                _check_numbering(self.targets, classes=CLASSES in objective.provides)
            object.__setattr__(self, "labels", self.labels or objective.default_labels(self.targets))
            object.__setattr__(self, "objective", objective.bound_to(self))

    def _check_lengths(self) -> None:
        if isinstance(self.inputs, LazyInputs) and len(self.inputs) != len(self.targets):
            raise SpecError(f"{len(self.inputs)} inputs but {len(self.targets)} targets", where="data.inputs")
        for name, tensor in tensors_of(self.inputs).items():
            if len(tensor) != len(self.targets):
                raise SpecError(f"{len(tensor)} inputs but {len(self.targets)} targets", where=f"data{name}")
        if self.lengths is not None and self.lengths.shape != (len(self.targets),):
            allowed = f"[{len(self.targets)}]"
            raise SpecError(f"found shape {list(self.lengths.shape)}", where="data.lengths", allowed=allowed)

    def judged_by(self, objective: Objective | None) -> Data:
        """The same data under another objective.

        Args:
            objective: The objective; `None` keeps the inferred one.

        Raises:
            SpecError: The targets do not fit the objective, or none is given and none can be inferred.
        """
        if objective is not None:
            return replace(self, objective=objective, labels=self.given_labels)  # type: ignore[attr-defined]
        if self.objective is None:
            shape = f"{self.targets.dtype} {list(self.targets.shape)}"
            raise SpecError(
                f"targets {shape} are ambiguous",
                where="objective",
                remedy='name the objective: [objective] with name = "multilabel", "segmentation", ...',
            )
        return self

    @property
    def has_classes(self) -> bool:
        """Whether each example has one class."""
        return self.objective is not None and CLASSES in self.objective.provides

    @property
    def has_tokens(self) -> bool:
        """Whether each example is a text with a target per token."""
        return self.objective is not None and TOKENS in self.objective.provides

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{list(t.shape[1:])} {t.dtype}" for t in tensors_of(self.inputs).values()) or "lazy inputs"
        return f"Data({len(self)} examples, {shapes}, {type(self.objective).__name__})"

    def __getitem__(self, index: int) -> Batch:
        return self.batch(torch.tensor([index]))

    def batch(self, ids: Tensor, *, trimmed: bool = True) -> Batch:
        """The examples with these ids, in this order; if `trimmed`, texts without padding that all of them have."""
        batch = Batch(rows_of(self.inputs, ids), self.targets[ids], ids)
        if self.lengths is None or not trimmed or not len(ids):
            return batch
        width = int(self.lengths[ids].max())
        return batch._replace(inputs=batch.inputs[:, :width], targets=batch.targets[:, :width])

    def stream(self, chunks: Sequence[Tensor], generator: torch.Generator | None = None) -> Iterator[Batch]:
        """A batch for each chunk of ids, in turn; lazy inputs are read ahead.

        Args:
            chunks: Ids of each batch.
            generator: Generator of the augmentations; without one, no augmentation is applied.
        """
        for batch in self._read(chunks):
            yield batch if generator is None else self._augmented(batch, generator)

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        for augment in self.augmentations:
            batch = batch._replace(inputs=augment(batch.inputs, generator))
        return batch

    def _read(self, chunks: Sequence[Tensor]) -> Iterator[Batch]:
        if not isinstance(self.inputs, LazyInputs):
            yield from (self.batch(ids) for ids in chunks)
            return
        for ids, inputs in zip(chunks, self.inputs.stream(chunks), strict=True):
            yield Batch(inputs, self.targets[ids], ids)

    @cached_property
    def example(self) -> Inputs:
        """The inputs of the first example, `[1, ...]`, which show shape and type of all."""
        return rows_of(self.inputs, torch.tensor([0]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example's inputs.

        Raises:
            SpecError: There are several inputs.
        """
        if not isinstance(self.example, Tensor):
            raise SpecError("each example has several inputs", where="data.inputs", allowed="one tensor per example")
        return tuple(self.example.shape[1:])

    def with_inputs(self, ids: Tensor, edit: Callable[[Tensor], Tensor]) -> Data:
        """A copy of the data with a function applied to the inputs of some examples."""
        if isinstance(self.inputs, LazyInputs):
            return replace(self, inputs=self.inputs.edited(ids, edit))
        inputs = self.inputs.clone()
        for index in ids.tolist():
            inputs[index] = edit(inputs[index])
        return replace(self, inputs=inputs)

    def group_of(self, ids: Tensor) -> Tensor:
        """The group of each id; without groups, each example is its own group."""
        return ids if self.groups is None else self.groups[ids]

    def relabelled(self, ids: Tensor, targets: Tensor) -> Data:
        """A copy of the data with other targets for some examples, and without C-scores, which are no longer valid."""
        changed = self.targets.clone()
        changed[ids] = targets
        return replace(self, targets=changed, cscore=None)


def rows_of(inputs: Inputs, ids: Tensor) -> Inputs:
    """The rows with these ids, in the form of the inputs."""
    if isinstance(inputs, Mapping):
        return {name: rows_of(value, ids) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(rows_of(value, ids) for value in inputs)
    return inputs[ids]


def tensors_of(inputs: Inputs) -> dict[str, Tensor]:
    """Each tensor in memory by its Python expression: `.inputs`, `.inputs[0]`, `.inputs['x']`."""
    if isinstance(inputs, Mapping):
        return {f".inputs[{name!r}]": value for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return {f".inputs[{i}]": value for i, value in enumerate(inputs)}
    return {} if isinstance(inputs, LazyInputs) else {".inputs": inputs}


def _check_finite(inputs: Inputs, count: int) -> None:
    for name, tensor in tensors_of(inputs).items():
        # If any term is not finite, the sum is not finite either; the sum needs no second copy of the data.
        if not (tensor.is_floating_point() or tensor.is_complex()) or torch.isfinite(tensor.sum()):
            continue
        bad = (~torch.isfinite(tensor.reshape(count, -1))).any(1).nonzero().flatten()
        if len(bad):
            raise SpecError(
                f"{len(bad)} inputs are not finite, the first has id {int(bad[0])}",
                where=f"data{name}",
                allowed="finite numbers",
                remedy="clean or drop these examples",
            )


def _check_numbering(targets: Tensor, *, classes: bool) -> None:
    """Refuse labels that would make many classes without an example, or more than a model can have.

    Raises:
        SpecError: The largest label is too large; the message counts the distinct ones.
    """
    if targets.is_floating_point() or targets.is_complex() or not targets.numel():
        return
    count = int(targets.max()) + 1
    distinct = len(targets.unique()) if classes else count
    if count > MOST_LABELS or (count > 2 * distinct and count - distinct >= FEW_MISSING):
        raise SpecError(
            f"the largest label is {count - 1}, which makes {count} classes"
            + (f", and {count - distinct} of them have no example" if distinct < count else ""),
            where="data.targets",
            allowed=f"labels numbered from 0 without large gaps, below {MOST_LABELS}",
            remedy="number them anew, as by numpy.unique(y, return_inverse=True), or name every class with labels",
        )


def check_ids(ids: Tensor, n: int, *, where: str, among: Tensor | None = None) -> None:
    """Refuse ids that are not whole numbers, are out of range, or occur twice.

    Args:
        ids: The ids.
        n: Number of examples.
        where: Name of the ids, for messages.
        among: The ids that are allowed here, for messages; by default all examples.

    Raises:
        SpecError: An id is refused; the message says which one and why.
    """
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise SpecError(f"ids are {ids.dtype} {list(ids.shape)}", where=where, allowed="a list of whole numbers")
    outside = ids[(ids < 0) | (ids >= n)]
    if len(outside):
        raise SpecError(
            f"id {int(outside[0])} is out of range",
            where=where,
            allowed=ranges(torch.arange(n) if among is None else among),
        )
    unique, counts = ids.unique(return_counts=True)
    if len(unique) != len(ids):
        raise SpecError(
            f"id {int(unique[counts > 1][0])} occurs {int(counts.max())} times", where=where, allowed="each id once"
        )


def ranges(ids: Tensor) -> str:
    """Ids as text, in up to `MOST_RANGES` ranges: `0 to 439, 500 to 599`; if there are more, their number and ends."""
    ordered = ids.unique()
    if not len(ordered):
        return "none"
    breaks = (ordered.diff() > 1).nonzero().flatten() + 1
    parts = [(int(part[0]), int(part[-1])) for part in torch.tensor_split(ordered, breaks)]
    if len(parts) > MOST_RANGES:
        return f"{len(ordered)} ids between {parts[0][0]} and {parts[-1][1]}"
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in parts)
