"""Every test starts from the same random state on one thread, whatever ran before it and in whatever order."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch

# A sum over threads depends on how many there are; tests that compare bits must not.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_modules_are_forgotten() -> Iterator[None]:
    """A process imports a name once, and specs of several tests name modules of their own alike."""
    yield
    temporary = tempfile.gettempdir()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(temporary):
            del sys.modules[name]
