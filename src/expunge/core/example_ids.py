"""The ids of the batch that is in a forward pass, for layers that treat examples by id.

    with example_ids(batch.ids):
        model(batch.inputs)

Inside, any layer at any depth asks `current_ids()`, so that no module on the way needs an argument for them. Objectives
do this for every batch. The ids belong to the pass and not to a model: copies, `functional_call` and `vmap` need no
preparation, and a model without such layers pays about a microsecond.
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
        ids: One per example, `[b]` int64; `None` where there are none.
    """
    token = _IDS.set(ids)
    try:
        yield
    finally:
        _IDS.reset(token)


def current_ids() -> Tensor | None:
    """Ids of the examples in the running forward pass, `[b]` int64; `None` outside of any."""
    return _IDS.get()
