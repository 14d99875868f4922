"""Global random state, seeded inside a block and put back after it: PyTorch's on every device, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Seed the global generators inside the block; outside of it, none of them moves.

    The library's own parts draw from a CPU `torch.Generator` and move the numbers to the device, so that they do not
    depend on the device. This is for code that draws from global state: initial weights, dropout, users' functions.

    Args:
        seed: For all generators; `None` leaves each where it is.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    devices = _cuda_states(), _mps_state()
    if seed is not None:
        torch.manual_seed(seed)  # CUDA's and MPS's generators too
        np.random.seed(seed % 2**32)
        random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        _restore(*devices)


def _cuda_states() -> list[Tensor] | None:
    """Of all CUDA devices; `None` where CUDA has not been used, since reading a state would start it."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None


def _mps_state() -> Tensor | None:
    return torch.mps.get_rng_state() if torch.backends.mps.is_available() else None


def _restore(cuda: list[Tensor] | None, mps: Tensor | None) -> None:
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    elif torch.cuda.is_available():
        # CUDA had no state yet. It gets the one that it would have had: that of the program's own seed.
        torch.cuda.manual_seed_all(torch.initial_seed())
    if mps is not None:
        torch.mps.set_rng_state(mps)
