"""The ids of the batch in the current forward pass, for layers that treat examples by id.

    with example_ids(batch.ids):
        model(batch.inputs)

Inside, a layer at any depth calls `current_ids()`, so no module needs an argument for the ids. Objectives do this for
every batch. The ids belong to the forward pass and not to a model, so copies, `functional_call` and `vmap` work without
preparation. For a model without such layers this costs about a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_IDS: ContextVar[Tensor | None] = ContextVar("example_ids", default=None)


@contextmanager
def example_ids(ids: Tensor | None) -> Iterator[None]:
    """Inside, these are the ids of the examples in the batch.

    Args:
        ids: One per example, `[b]` int64; `None` if there are none.
    """
    token = _IDS.set(ids)
    try:
        yield
    finally:
        _IDS.reset(token)


def current_ids() -> Tensor | None:
    """Ids of the examples in the current forward pass, `[b]` int64; `None` outside of a forward pass."""
    return _IDS.get()
