"""The data set behind a `DataLoader`: a loader may repeat, shuffle or leave out examples, and a set must not."""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from expunge.base.errors import SpecError
from expunge.core.seeding import forked


def dataset_of(loader: DataLoader[Any], where: str) -> Any:
    """The loader's data set if the loader visits every example once; with a `collate_fn`, batches of it in order.

    The last batch counts even where `drop_last` leaves it out: in training, a shuffled loader sees it in other epochs.

    Args:
        loader: A loader over a map-style data set.
        where: Name of the argument, for messages.

    Returns:
        The data set, or a loader without sampler that gives each example once. A loader over a stream as it is.

    Raises:
        SpecError: Its sampler repeats examples or leaves some out.
    """
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return loader
    count = len(dataset)  # type: ignore[arg-type]
    with forked():
        sampler: Any = loader.sampler if _plain(loader) else chain.from_iterable(loader.batch_sampler)  # type: ignore[arg-type]
        # A sampler may be endless.
        drawn = list(islice(sampler, 2 * count + 1))
    distinct = len(set(map(int, drawn)))
    if distinct != count or len(drawn) != count:
        draws = f"more than {2 * count}" if len(drawn) > 2 * count else str(len(drawn))
        raise SpecError(
            f"its sampler draws {draws} examples, {distinct} of them distinct, from a data set of {count}",
            where=where,
            allowed="a loader that gives every example of its data set once",
            remedy="pass loader.dataset, or torch.utils.data.Subset(loader.dataset, ids) if only a part was trained on",
        )
    if loader.batch_size is None and loader.batch_sampler is None:
        return [dataset[i] for i in range(count)]
    if loader.collate_fn is default_collate:
        return dataset
    # Without a generator of its own, a loader draws from the global one.
    own = torch.Generator().manual_seed(0)
    return DataLoader(dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn, generator=own)


def _plain(loader: DataLoader[Any]) -> bool:
    """Whether batches are consecutive draws of the sampler, without a batch sampler of the user's."""
    return loader.batch_sampler is None or getattr(loader.batch_sampler, "sampler", None) is loader.sampler
