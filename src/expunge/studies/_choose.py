"""Settings chosen without looking at what a study reports: on other seeds, before any attack, by one number.

The number is ToW (evidence/tow.py): the product over forget, retain and test set of one minus the gap to the retrained
model. No attack is run, so that no method can be tuned on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evidence.table import Table
from expunge.studies._study import Work

Entry = dict[str, Any]
"""A method's table in a spec, without its label."""


def choose(
    work: Work, base: Mapping[str, Any], grid: Mapping[str, Sequence[Entry]], seeds: Sequence[int]
) -> dict[str, Any]:
    """The candidate of each label with the largest mean ToW.

    Args:
        work: Where to run.
        base: The spec's data, model, training and task.
        grid: Candidates by label; of a single one nothing is chosen, and without seeds the middle one is taken.
        seeds: None of which the study reports.

    Returns:
        `entries` by label, and `tow`, the mean of every candidate that was tried.
    """
    tried = {f"{label}-{i}": entry for label, found in grid.items() if len(found) > 1 for i, entry in enumerate(found)}
    if not (tried and seeds):
        return {"entries": {label: found[len(found) // 2] for label, found in grid.items()}, "tow": {}}
    methods = [{**entry, "label": label} for label, entry in tried.items()]
    means = _tow(work.run({**base, "seeds": list(seeds), "method": methods}, "choice").table)
    entries = {}
    for label, found in grid.items():
        best = max(range(len(found)), key=lambda i, label=label: means.get(f"{label}-{i}", 0.0))  # type: ignore[misc]
        entries[label] = found[best]
    return {"entries": entries, "tow": {f"{name} {_told(tried[name])}": round(means[name], 4) for name in tried}}


def _tow(table: Table) -> dict[str, float]:
    rows = [r for r in table.rows() if (r["metric"], r["seed"], r["attack"]) == ("tow", None, None)]
    return {row["model"]: float(row["value"]) for row in rows}


def _told(entry: Entry) -> str:
    return ", ".join(f"{key}={value}" for key, value in entry.items() if key != "name")
