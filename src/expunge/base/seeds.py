"""Seeds for stages: an integer derived from the run's seed and the stage's name, the same on every machine."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: object) -> int:
    """A seed for something inside a run, independent of the seeds of everything else in it.

    Args:
        seed: The run's seed.
        names: The use of the seed, from general to specific, e.g. `"unlearn", "npo"`.

    Returns:
        An integer in [0, 2**63), the range that `torch.Generator.manual_seed` accepts.
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
