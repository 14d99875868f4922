"""Random numbers: one generator for each purpose, seeded from the run's seed and the purpose's name."""

from __future__ import annotations

import torch

from expunge.base.seeds import derive


def generator_of(seed: int, *names: object) -> torch.Generator:
    """A generator on the CPU for one purpose; the same seed and names give the same numbers on every machine.

    Args:
        seed: The run's or stage's seed.
        names: The purpose, from the outside in, e.g. `"batches"`.

    Returns:
        A generator for this purpose only.
    """
    return torch.Generator().manual_seed(derive(seed, *names))
