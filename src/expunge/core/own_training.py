"""The user's `build` and `train` are checked, not believed: new models, trained in place on the given items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset, Subset

from expunge.base.errors import SpecError
from expunge.core.modules import shared_storage, tensors

FEWEST_READ = 0.5
"""Smallest share of its items that a training must read. Sampling with replacement reads 63 % in one pass."""


def require_independent(module: nn.Module, others: Mapping[str, nn.Module], where: str) -> None:
    """Refuse a module that shares memory with another one: training one of them would change both.

    Args:
        module: The module.
        others: Other modules, by what they are.
        where: Place of the function that made the module, for messages.

    Raises:
        SpecError: They share a tensor; the message names the first one and counts the others.
    """
    for what, other in others.items():
        names = shared_storage(module, other)
        if names:
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            raise SpecError(
                f"the module shares memory with {what}: {names[0]}{more}",
                where=where,
                allowed="a module with tensors of its own",
                remedy="make a new module in every call, and take weights from another one with copy.deepcopy",
            )


def require_same_shapes(module: nn.Module, original: nn.Module, where: str) -> None:
    """Refuse a fresh module whose state dict has other names or shapes than that of the original.

    Raises:
        SpecError: They differ, or a tensor has no shape yet; the message names the first difference.
    """
    state, expected = module.state_dict(keep_vars=True), original.state_dict(keep_vars=True)
    lazy = [name for name, tensor in state.items() if is_lazy(tensor)]
    if lazy:
        remedy = "run the module once on a batch inside the function"
        raise SpecError(f"{lazy[0]} has no shape before the first forward pass", where=where, remedy=remedy)
    differing = [f"{name} is missing" for name in expected if name not in state]
    differing += [f"{name} is not part of the original" for name in state if name not in expected]
    differing += [
        f"{name} has shape {list(state[name].shape)}, the original's has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if differing:
        more = f" and {len(differing) - 1} more differences" if len(differing) > 1 else ""
        raise SpecError(
            f"it makes another architecture than the original's: {differing[0]}{more}",
            where=where,
            allowed=f"a {type(original).__name__} with the same names and shapes in its state dict",
            remedy="build the model as the original was built",
        )


def train_in_place(
    train: Callable[..., object], module: nn.Module, items: Dataset[Any], ids: Tensor, where: str, **settings: Any
) -> None:
    """Call the user's training function, and check what it did.

    Args:
        train: `train(module, dataset, **settings)`.
        module: Trained in place.
        items: All items; the index of an item is its id.
        ids: The items to train on, `[k]`.
        where: Place of the function, for messages.
        **settings: Keywords of the function.

    Raises:
        SpecError: The function returned another module, or it did not read its data set.
    """
    watched = _Watched(items, ids)
    returned = train(module, watched, **settings)
    if isinstance(returned, nn.Module) and len(shared_storage(returned, module)) < len(tensors(returned)):
        raise SpecError(
            "it returns another module than the one that it was given",
            where=where,
            allowed="a function that trains the module in place; what it returns is not used",
            remedy="copy the trained weights into the module at its end: module.load_state_dict(trained.state_dict())",
        )
    read = int(watched.read.sum())
    if read < FEWEST_READ * len(ids) and not watched.listed:
        raise SpecError(
            f"it read {read} of the {len(ids)} items of its data set",
            where=where,
            allowed="a function that trains on the data set that it is given, and on nothing else",
            remedy="train on the argument: a model that saw the forget set elsewhere is no reference",
        )


class _Watched(Subset[Any]):
    """Some items of a data set. It notes in shared memory which of them were read, also by a `DataLoader`'s workers."""

    def __init__(self, items: Dataset[Any], ids: Tensor) -> None:
        self.read = torch.zeros(len(ids), dtype=torch.uint8).share_memory_()
        self.listed = False
        super().__init__(items, ids.tolist())

    @property
    def indices(self) -> Sequence[int]:
        """The ids. Code that asks for them may read the items by another way, which cannot be watched."""
        self.listed = True
        return self._ids

    @indices.setter
    def indices(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def __getitem__(self, index: Any) -> Any:
        self.read[index] = 1
        if isinstance(index, list):
            return self.dataset[[self._ids[i] for i in index]]
        return self.dataset[self._ids[index]]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.read[indices] = 1
        inner = getattr(self.dataset, "__getitems__", None)
        ids = [self._ids[i] for i in indices]
        return inner(ids) if callable(inner) else [self.dataset[i] for i in ids]

    def __len__(self) -> int:
        return len(self._ids)
