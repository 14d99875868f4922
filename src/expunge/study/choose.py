"""Choose settings without using what a study reports: on other seeds, before any attack, by one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.base.errors import RunError
from expunge.evidence.table import Table
from expunge.study.study import Work

Entry = dict[str, Any]
"""A method's table in a spec, without its label."""
Number = Callable[[Table], dict[str, float]]
"""Maps a run's table to one number per label; larger is better."""
PARTS = ("forget", "retain")


def choose(
    work: Work, specs: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Sequence[Entry]], number: Number
) -> dict[str, Any]:
    """The candidate of each label with the largest mean of a number over runs.

    Args:
        work: Where to run.
        specs: Data, model, training, task and seeds by name of the run; empty to take the middle candidates unseen.
        grid: Candidates by label; a single candidate is taken without a run.
        number: The number to maximise, measured before any attack, so that no method is tuned on the attacks.

    Returns:
        `entries` by label, and `tried`, the mean of every candidate; minus infinity for one that failed.

    Raises:
        RunError: All candidates of a label failed.
    """
    tried = {f"{label}-{i}": entry for label, row in grid.items() if len(row) > 1 for i, entry in enumerate(row)}
    if not (tried and specs):
        return {"entries": {label: row[len(row) // 2] for label, row in grid.items()}, "tried": {}}
    methods = [{**entry, "label": label} for label, entry in tried.items()]
    failed: dict[str, RunError] = {}
    runs = [_numbers(work, spec, f"choice-{name}", methods, number, failed) for name, spec in specs.items()]
    means = {label: float(np.mean([numbers[label] for numbers in runs])) for label in tried}
    for label, row in grid.items():
        names = {f"{label}-{i}" for i in range(len(row))}
        if names <= failed.keys():
            raise failed[min(names)].at(f"every candidate of {label!r} failed")
    entries = {label: row[_best(means, label, len(row))] for label, row in grid.items()}
    return {"entries": entries, "tried": {f"{name}: {_spelled(tried[name])}": round(means[name], 4) for name in tried}}


def _numbers(
    work: Work,
    spec: Mapping[str, Any],
    name: str,
    methods: Sequence[Entry],
    number: Number,
    failed: dict[str, RunError],
) -> dict[str, float]:
    """The number of each candidate from one run; if that run fails, from a separate run for each candidate."""
    try:
        return number(work.run({**spec, "method": list(methods)}, name).table)
    except RunError as error:
        # A candidate that diverges must not stop the others: it counts as minus infinity.
        if len(methods) == 1:
            failed[methods[0]["label"]] = error
            return {methods[0]["label"]: -np.inf}
        alone = [_numbers(work, spec, f"{name}-{method['label']}", [method], number, failed) for method in methods]
        return {method["label"]: own[method["label"]] for method, own in zip(methods, alone, strict=True)}


def _best(means: Mapping[str, float], label: str, count: int) -> int:
    return max(range(count), key=lambda i: means.get(f"{label}-{i}", 0.0))


def near_retrained(table: Table) -> dict[str, float]:
    """Closeness to the retrained model on forget and retain set: the mean of (1 - |gap|)(1 - |gap|), no test set."""
    gaps = {
        (row["model"], row["seed"], row["split"]): float(row["gap"])
        for row in table.rows()
        if row["metric"] == "accuracy" and row["attack"] is None and row["seed"] is not None and row["gap"] is not None
    }

    def mean(model: str) -> float:
        return float(np.mean([np.prod([1 - abs(gaps[model, s, part]) for part in PARTS]) for s in table.seeds]))

    return {model: mean(model) for model in table.models if (model, table.seeds[0], "forget") in gaps}


def kept_and_forgotten(table: Table) -> dict[str, float]:
    """REM's proxy (2505.17730): accuracy on retain, as labelled, times one minus that on forget, at least 0.2."""

    def mean(model: str, split: str) -> float:
        per_seed = [table.get(model, seed, None, ("accuracy", split)) for seed in table.seeds]
        return float(np.mean([scores.reduced() for scores in per_seed if scores is not None]))

    return {model: mean(model, "retain") * (1 - max(mean(model, "forget"), 0.2)) for model in table.models}


def _spelled(entry: Entry) -> str:
    return ", ".join(f"{key}={value}" for key, value in entry.items())
