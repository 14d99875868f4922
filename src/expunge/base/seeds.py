"""Seeds for stages: one integer from the run's seed and the stage's name, the same on every machine."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: object) -> int:
    """A seed for something inside a run, independent of the seeds of everything else in it.

    Args:
        seed: The run's seed.
        names: What it is for, from the outside in, e.g. `"unlearn", "npo"`.

    Returns:
        An integer in [0, 2**63), which is what `torch.Generator.manual_seed` takes.
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
