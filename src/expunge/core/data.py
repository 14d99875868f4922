"""Examples with stable ids, in memory, for classifiers and language models alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.base.errors import SpecError

IGNORE = -100
"""Target of a token that is no decision (a prompt, padding); the value that PyTorch's cross-entropy ignores."""


class Batch(NamedTuple):
    """Some examples: inputs `[b, ...]`, targets `[b]` (classes) or `[b, t]` (tokens), ids `[b]`."""

    inputs: Tensor
    targets: Tensor
    ids: Tensor

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.ids)


@dataclass(frozen=True)
class Data:
    """A data set: one pool of examples, addressed by id, of which some are for training and some for test.

    Args:
        inputs: Images or vectors `[n, ...]` (floating point) or tokens `[n, t]` (int64).
        targets: Class indices `[n]`, or the next token at each position `[n, t]` with `IGNORE` where there is none;
            at least one per example is a decision.
        train: Ids of the training examples, `[k]` int64.
        test: Ids of the test examples, `[m]` int64.
        labels: What the classes mean, in order; for tokens the vocabulary, possibly as plain numbers.
        kind: `"classes"` (one decision per example) or `"tokens"` (one per position that is not ignored).
        cscore: C-scores that ship with the data, `[n]`, NaN where there is none; default: they have to be computed.
        groups: Examples of one group are copies or relatives that must never be split, `[n]` int64; default: none are.

    Raises:
        SpecError: A value that is not finite, a target outside the labels, a text without decisions, or shapes that
            disagree.
    """

    inputs: Tensor
    targets: Tensor
    train: Tensor
    test: Tensor
    labels: tuple[str, ...]
    kind: Literal["classes", "tokens"] = "classes"
    groups: Tensor | None = None
    cscore: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise SpecError(f"{len(self.inputs)} inputs but {len(self.targets)} targets", where="data")
        rank = 1 if self.kind == "classes" else 2
        if self.targets.ndim != rank or self.targets.shape != self.inputs.shape[:rank]:
            raise SpecError(
                f"targets have shape {list(self.targets.shape)}, inputs {list(self.inputs.shape)}",
                where="data.targets",
                allowed="one target per example, or for tokens one per position",
            )
        self._check_inputs()
        self._check_targets()
        for name in ("train", "test"):
            check_ids(getattr(self, name), len(self), where=f"data.{name}")

    def _check_inputs(self) -> None:
        if not self.inputs.is_floating_point():
            return
        # A sum is not finite if any term is not, and costs no second copy of the data.
        if torch.isfinite(self.inputs.sum()):
            return
        bad = (~torch.isfinite(self.inputs.reshape(len(self), -1))).any(1).nonzero().flatten()
        if len(bad):
            raise SpecError(
                f"{len(bad)} inputs are not finite, the first has id {int(bad[0])}",
                where="data.inputs",
                allowed="finite numbers",
                remedy="clean or drop these examples",
            )

    def _check_targets(self) -> None:
        decided = self.targets[self.targets != IGNORE] if self.kind == "tokens" else self.targets
        # Where nothing is decided nothing is wrong: such an example would count as known.
        idle = (self.targets == IGNORE).all(1).nonzero().flatten() if self.kind == "tokens" else decided[:0]
        if len(idle):
            raise SpecError(
                f"{len(idle)} examples decide nothing, the first has id {int(idle[0])}",
                where="data.targets",
                allowed=f"at least one target other than {IGNORE} per example",
                remedy="drop these examples, or let a token of theirs count",
            )
        if len(decided) == 0:
            return
        low, high = int(decided.min()), int(decided.max())
        if low < 0 or high >= len(self.labels):
            worst = low if low < 0 else high
            place = int((self.targets == worst).flatten(1 if self.targets.ndim > 1 else 0).nonzero()[0][0])
            raise SpecError(
                f"label {worst} (example {place}) is outside the classes",
                where="data.targets",
                allowed=f"0 to {len(self.labels) - 1}",
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Batch:
        return self.batch(torch.tensor([index]))

    def batch(self, ids: Tensor) -> Batch:
        """The examples with these ids, in this order."""
        return Batch(self.inputs[ids], self.targets[ids], ids)

    def group_of(self, ids: Tensor) -> Tensor:
        """The group of each id; an example without group is its own."""
        return ids if self.groups is None else self.groups[ids]

    def relabelled(self, ids: Tensor, targets: Tensor) -> Data:
        """The same data with other targets for some examples; nothing is changed in place, C-scores no longer hold."""
        changed = self.targets.clone()
        changed[ids] = targets
        return replace(self, targets=changed, cscore=None)


def check_ids(ids: Tensor, n: int, *, where: str) -> None:
    """Refuse ids that are no whole numbers, out of range, or named twice.

    Args:
        ids: The ids.
        n: Number of examples there are.
        where: Place for the message.

    Raises:
        SpecError: Says which id and why.
    """
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise SpecError(f"ids are {ids.dtype} {list(ids.shape)}", where=where, allowed="a list of whole numbers")
    outside = ids[(ids < 0) | (ids >= n)]
    if len(outside):
        raise SpecError(f"id {int(outside[0])} is out of range", where=where, allowed=f"0 to {n - 1}")
    unique, counts = ids.unique(return_counts=True)
    if len(unique) != len(ids):
        raise SpecError(
            f"id {int(unique[counts > 1][0])} is named {int(counts.max())} times", where=where, allowed="each id once"
        )
