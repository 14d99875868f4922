"""ToW, the tug of war between forgetting and keeping (Zhao et al., RUM, 2406.01257), from the rows of a table.

    ToW = product over forget, retain and test of  1 - |accuracy - accuracy of the retrained model|

ToW is 1 for a model that has the accuracy of the retrained model on each part; accuracies are shares. ToW-MIA replaces
forget accuracy by the share of forget examples that `membership` with `attack = "confidence"` calls members. The papers
count the share called unseen, which has the same gap. Forget accuracy is measured on the held-out part, as everywhere
in expunge.

A product hides which part has the gap, and the part matters more than the size. So ToW only describes and never enters
a verdict. Other papers give the same name to other quantities: utility times healed, or a product of accuracies without
a reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evidence.estimate import over_seeds

Row = Mapping[str, Any]
"""A row of results, see `Table.rows`."""

PRODUCTS = {
    "tow": (("accuracy", "forget"), ("accuracy", "retain"), ("accuracy", "test")),
    "tow_mia": (("membership_confidence", "forget"), ("accuracy", "retain"), ("accuracy", "test")),
}
"""Name of each product -> the metrics and splits that enter it."""


def tow(gaps: Sequence[float]) -> float:
    """The product of 1 - |gap| over the gaps to the retrained model, which are shares between -1 and 1."""
    return math.prod(1 - abs(gap) for gap in gaps)


def tow_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row per model, seed and attack for each product whose gaps were all measured, and one over seeds.

    Args:
        rows: Rows of a run. The reference's rows have no gaps, so the reference gets no product.

    Returns:
        More rows of the same form, in the order of models and attacks; their `gap` is the distance to 1.
    """
    cells = {(r["model"], r["attack"], r["seed"], r["metric"], r["split"]): r["gap"] for r in rows}
    products: list[dict[str, Any]] = []
    for model, attack in dict.fromkeys((r["model"], r["attack"]) for r in rows):
        seeds = dict.fromkeys(
            r["seed"] for r in rows if (r["model"], r["attack"]) == (model, attack) and r["seed"] is not None
        )
        for name, parts in PRODUCTS.items():
            values = {}
            for seed in seeds:
                gaps = [cells.get((model, attack, seed, *part)) for part in parts]
                if all(gap is not None for gap in gaps):
                    values[seed] = tow([gap for gap in gaps if gap is not None])
            products += [_row(model, attack, name, seed, value) for seed, value in values.items()]
            if values:
                products.append(_over_seeds(model, attack, name, list(values.values())))
    return products


def _row(model: str, attack: str | None, name: str, seed: int, value: float) -> dict[str, Any]:
    # The three parts consist of different examples, so a single seed has no interval over examples.
    numbers = {"value": value, "low": math.nan, "high": math.nan, "n": 1}
    return _cell(model, attack, name, seed) | numbers | {"unit": "share", "better": "higher", "gap": value - 1}


def _over_seeds(model: str, attack: str | None, name: str, values: list[float]) -> dict[str, Any]:
    mean = over_seeds(values, "share", "higher")
    numbers = {key: getattr(mean, key) for key in ("value", "low", "high", "n", "unit", "better")}
    return _cell(model, attack, name, None) | numbers | {"gap": mean.value - 1}


def _cell(model: str, attack: str | None, name: str, seed: int | None) -> dict[str, Any]:
    return {"model": model, "seed": seed, "attack": attack, "metric": name, "split": "all"}
