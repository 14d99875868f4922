"""Inputs that are read on demand from any map-style data set, so that a data set need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from expunge.base.errors import RunError, SpecError

Collate = Callable[[list[Any]], Any]
"""A function from a list of items to a batch, as for PyTorch's `DataLoader`."""


def first_of(batch: Any) -> Any:
    """The first element of a batch `(inputs, target, ...)`; the batch itself if it is not a tuple or list."""
    return batch[0] if isinstance(batch, tuple | list) else batch


@dataclass(frozen=True, eq=False)
class LazyInputs:
    """The inputs of a map-style data set, read batch by batch.

    Args:
        dataset: Item `i` is the example with id `i`; it must be the same on every read.
        inputs_of: Function from a collated batch to the model's inputs. By default it takes the first element of a
            tuple or list, otherwise the batch itself.
        collate: Function from a list of items to a batch; PyTorch's by default.
        workers: Number of processes that read ahead; with 0, this process reads. The values do not depend on it.
        pinned: Whether batches are read into pinned memory, which makes copies to a GPU faster.
        edits: Id -> function that is applied to the inputs of this example.
    """

    dataset: Dataset[Any]
    inputs_of: Callable[[Any], Any] = first_of
    collate: Collate | None = None
    workers: int = 0
    pinned: bool = False
    edits: Mapping[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not hasattr(self.dataset, "__getitem__") or not hasattr(self.dataset, "__len__"):
            raise SpecError(
                f"found {type(self.dataset).__name__}",
                where="data.inputs",
                allowed="a map-style data set, with __getitem__ and __len__",
            )

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, ids: Tensor) -> Any:
        """Read the inputs with these ids, `[b, ...]`, in this process.

        Raises:
            RunError: A value is not finite; the message names the first id.
        """
        batch = (self.collate or default_collate)([self.dataset[i] for i in ids.tolist()])
        return self._finished(batch, ids)

    def stream(self, chunks: Sequence[Tensor]) -> Iterator[Any]:
        """The inputs of each chunk of ids in turn; the workers read ahead.

        Raises:
            RunError: A value is not finite; the message names the first id.
        """
        if not self.workers:
            yield from (self[ids] for ids in chunks)
            return
        loader: Iterable[Any] = DataLoader(
            self.dataset,
            batch_sampler=[ids.tolist() for ids in chunks],
            collate_fn=self.collate,
            num_workers=min(self.workers, len(chunks)),
            pin_memory=self.pinned,
            # Items must not depend on the generator. Without one, PyTorch would draw from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for ids, batch in zip(chunks, loader, strict=True):
            yield self._finished(batch, ids)

    def edited(self, ids: Tensor, edit: Callable[[Tensor], Tensor]) -> LazyInputs:
        """A copy with one more function for some examples, applied after their earlier functions."""
        changed = dict(self.edits)
        for index in ids.tolist():
            before = changed.get(index)
            changed[index] = edit if before is None else _after(before, edit)
        return replace(self, edits=changed)

    def _finished(self, batch: Any, ids: Tensor) -> Any:
        inputs = self.inputs_of(batch)
        if self.edits and isinstance(inputs, Tensor):
            rows = [(row, self.edits[i]) for row, i in enumerate(ids.tolist()) if i in self.edits]
            inputs = inputs.clone() if rows else inputs
            for row, edit in rows:
                inputs[row] = edit(inputs[row])
        if isinstance(inputs, Tensor) and inputs.is_floating_point() and not torch.isfinite(inputs.sum()):
            bad = (~torch.isfinite(inputs.reshape(len(ids), -1))).any(1).nonzero().flatten()
            if len(bad):
                finding = f"the inputs of example {int(ids[bad[0]])} are not finite"
                raise RunError(finding, where="data.inputs", remedy="clean or drop this example")
        return inputs


def _after(first: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda inputs: then(first(inputs))
