"""Estimates of a run's diagnostics, by seed and over seeds, with each diagnostic's summary in words."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from expunge.base.memory import MemoryStore
from expunge.base.store import Store
from expunge.evidence.estimate import Estimate, together
from expunge.pipeline.plan import Plan
from expunge.pipeline.stage import ESTIMATES


def diagnosis(
    plan: Plan, store: Store | MemoryStore, labels: Collection[str | None] | None = None
) -> list[dict[str, Any]]:
    """Read the diagnostics' estimates from the store.

    Args:
        plan: The plan; its diagnostics have run.
        store: Where their outputs are.
        labels: Labels of the diagnostics to read; all by default.

    Returns:
        Per diagnostic a table with its label as `diagnostic`, `name`, `sentence`, `proposal` (tables of methods) and
        `rows`. Each row has `what`,
        `seed` (null over seeds), `value`, `low`, `high`, `n`, `unit`, `better` and `predicts` (see
        `Diagnostic.predicts`, or null).
    """
    return [_of_diagnostic(plan, store, label) for label in plan.diagnostics if labels is None or label in labels]


def _of_diagnostic(plan: Plan, store: Store | MemoryStore, label: str) -> dict[str, Any]:
    diagnostic = plan.diagnostics[label]
    stages = [stage for stage in plan.stages if stage.kind == "diagnostic" and stage.part == label]
    by_seed = {stage.seed: _read(store, stage.key) for stage in stages}
    first = next(iter(by_seed.values()))
    over = {what: together([estimates[what] for estimates in by_seed.values()]) for what in first}
    rows = [
        {"what": what, "seed": seed, **estimate.as_json(), "predicts": diagnostic.predicts.get(what)}
        for seed, estimates in (*by_seed.items(), (None, over))
        for what, estimate in estimates.items()
    ]
    return {
        "diagnostic": label,
        "name": plan.name_of("diagnostic", label),
        "sentence": diagnostic.summary(over),
        "proposal": diagnostic.proposal(over),
        "rows": rows,
    }


def _read(store: Store | MemoryStore, key: str) -> dict[str, Estimate]:
    table = json.loads(store.read(key, ESTIMATES))
    # JSON has no numbers that are not finite: they are stored as words.
    numbers = ("value", "low", "high")
    return {what: Estimate(**{**row, **{name: float(row[name]) for name in numbers}}) for what, row in table.items()}
