"""What a run's diagnostics estimated, by seed and over seeds, with the sentence that each diagnostic makes of it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from expunge.base.memory import MemoryStore
from expunge.base.record import Store
from expunge.evidence.estimate import Estimate, together
from expunge.pipeline.plan import Plan
from expunge.pipeline.stage import ESTIMATES


def diagnosis(
    plan: Plan, store: Store | MemoryStore, labels: Collection[str | None] | None = None
) -> list[dict[str, Any]]:
    """Read what is in the store.

    Args:
        plan: Whose diagnostics have run.
        store: Where their outputs are.
        labels: Of the diagnostics to read; all by default.

    Returns:
        Per diagnostic its label as `diagnostic`, `name`, `sentence`, and `rows` of `what`, `seed` (null over seeds),
        value, low, high, n, unit, better and `predicts`, as `Diagnostic.predicts` or null.
    """
    return [_of_diagnostic(plan, store, label) for label in plan.diagnostics if labels is None or label in labels]


def _of_diagnostic(plan: Plan, store: Store | MemoryStore, label: str) -> dict[str, Any]:
    diagnostic = plan.diagnostics[label]
    stages = [stage for stage in plan.stages if stage.kind == "diagnostic" and stage.part == label]
    found = {stage.seed: _read(store, stage.key) for stage in stages}
    over = {what: together([seed[what] for seed in found.values()]) for what in next(iter(found.values()))}
    rows = [
        {"what": what, "seed": seed, **estimate.as_json(), "predicts": diagnostic.predicts.get(what)}
        for seed, estimates in (*found.items(), (None, over))
        for what, estimate in estimates.items()
    ]
    return {
        "diagnostic": label,
        "name": plan.name_of("diagnostic", label),
        "sentence": diagnostic.summary(over),
        "rows": rows,
    }


def _read(store: Store | MemoryStore, key: str) -> dict[str, Estimate]:
    held = json.loads(store.read(key, ESTIMATES))
    # A number that is not finite is spelled out in JSON.
    numbers = ("value", "low", "high")
    return {what: Estimate(**{**one, **{name: float(one[name]) for name in numbers}}) for what, one in held.items()}
