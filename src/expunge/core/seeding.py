"""Seed global random state inside a block and restore it afterwards: of PyTorch on every device, NumPy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Seed the global generators inside the block; outside of it, their state does not change.

    The library's own parts draw from a CPU `torch.Generator` and move the numbers to the device, so they do not depend
    on the device. This function is for code that draws from global state: initial weights, dropout, users' functions.

    Args:
        seed: Seed of all generators; `None` keeps their states at the start of the block.
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
    """States of all CUDA devices; `None` if CUDA has not been used, because reading a state would initialise it."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None


def _mps_state() -> Tensor | None:
    return torch.mps.get_rng_state() if torch.backends.mps.is_available() else None


def _restore(cuda: list[Tensor] | None, mps: Tensor | None) -> None:
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    elif torch.cuda.is_available():
        # CUDA had no state before. It gets the state that it would have had, from the program's own seed.
        torch.cuda.manual_seed_all(torch.initial_seed())
    if mps is not None:
        torch.mps.set_rng_state(mps)
