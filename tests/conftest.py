"""Every test starts from the same random state on one thread, whatever ran before it and in whatever order."""

from __future__ import annotations

import random

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
