"""ToW, the tug of war between forgetting and keeping (Zhao et al., RUM, 2406.01257), from rows that a table has.

    ToW = product over forget, retain and test of  1 - |accuracy - accuracy of the retrained model|

1 is a model that is right as often as a retrained one on each part; accuracies are shares. ToW-MIA has in the place of
forget accuracy how often forget examples are called members by `membership` with `attack = "confidence"`; the papers
count those called unseen, which has the same gap. Forget accuracy is that of the held-out part, as everywhere here.

A product hides which part is to blame, and *where* a gap lies says more than its size, so that ToW describes and never
enters a verdict. The quantities that other papers call by that name are others: utility times healed, or a product of
accuracies without a reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evidence.estimate import over_seeds

Row = Mapping[str, Any]
"""A row of results, as `Table.rows` makes it."""

PRODUCTS = {
    "tow": (("accuracy", "forget"), ("accuracy", "retain"), ("accuracy", "test")),
    "tow_mia": (("membership_confidence", "forget"), ("accuracy", "retain"), ("accuracy", "test")),
}
"""Name of each product to the metrics and splits that enter it."""


def tow(gaps: Sequence[float]) -> float:
    """The product of one minus the size of each gap to the retrained model, shares between -1 and 1."""
    return math.prod(1 - abs(gap) for gap in gaps)


def tow_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row per model, seed and attack for each product whose gaps are all there, and one over seeds.

    Args:
        rows: Rows of a run; those of the reference have no gaps and get none.

    Returns:
        More rows of the same form, in the order of models and attacks; their `gap` is the distance to 1.
    """
    cells = {(r["model"], r["attack"], r["seed"], r["metric"], r["split"]): r["gap"] for r in rows}
    found: list[dict[str, Any]] = []
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
            found += [_row(model, attack, name, seed, value) for seed, value in values.items()]
            if values:
                found.append(_over_seeds(model, attack, name, list(values.values())))
    return found


def _row(model: str, attack: str | None, name: str, seed: int, value: float) -> dict[str, Any]:
    # Within a seed the three parts are other examples each: there is no interval over examples to give.
    numbers = {"value": value, "low": math.nan, "high": math.nan, "n": 1}
    return _cell(model, attack, name, seed) | numbers | {"unit": "share", "better": "higher", "gap": value - 1}


def _over_seeds(model: str, attack: str | None, name: str, values: list[float]) -> dict[str, Any]:
    mean = over_seeds(values, "share", "higher")
    numbers = {key: getattr(mean, key) for key in ("value", "low", "high", "n", "unit", "better")}
    return _cell(model, attack, name, None) | numbers | {"gap": mean.value - 1}


def _cell(model: str, attack: str | None, name: str, seed: int | None) -> dict[str, Any]:
    return {"model": model, "seed": seed, "attack": attack, "metric": name, "split": "all"}
