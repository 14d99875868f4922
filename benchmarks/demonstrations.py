"""Greedy choice of demonstrations by low-rank updates against one inverse for each candidate and step (aim 0.1).

Both choose the same demonstrations, from normalised random embeddings, for 20 queries, in float64 on one thread.
"""

from __future__ import annotations

import torch

from benchmarks._ratio import compare
from expunge.numerics.concept_regression import Normalisation
from expunge.numerics.demonstrations import greedy, greedy_by_inverse

AIM = 0.1
SIZES = ((200, 4, 33, 16), (500, 4, 65, 16), (200, 10, 65, 16))
"""Candidates, options, dimension, and demonstrations."""


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    for candidates, options, width, count in SIZES:
        generator = torch.Generator().manual_seed(0)
        raw = torch.randn(candidates + 20, options, width - 1, generator=generator, dtype=torch.float64)
        rows = Normalisation.fit(raw)(raw)
        shown, queries = rows[20:], rows[:20]
        assert greedy(shown, queries, count) == greedy_by_inverse(shown, queries, count)
        ratio = compare(
            lambda a=shown, b=queries, n=count: greedy(a, b, n),
            lambda a=shown, b=queries, n=count: greedy_by_inverse(a, b, n),
            repeats,
        )
        print(
            f"demonstrations {candidates} x {options} x {width}, {count} chosen, over recomputing (aim {AIM}): {ratio}"
        )


if __name__ == "__main__":
    main()
