"""The tables of the page: estimates in short and in full, and costs.

The page sorts a cell by its text. A cell has `sort` if its text does not sort as a number: because of a thousands
separator, or the sign of a unit.
"""

from __future__ import annotations

import math

from expunge.evidence.estimate import is_binary
from expunge.evidence.table import ORIGINAL
from expunge.reporting.record import NAMES, Json, Run, mean
from expunge.reporting.text import columns_of, curve_key, percent, shown


def short_table(run: Run) -> list[Json]:
    """A line per model: the most important estimates and the verdict."""
    headlines = {verdict["model"]: verdict["verdict"] for verdict in run.verdicts}
    places = columns_of(run.table).values()
    return [
        {
            "model": NAMES.get(model, model),
            "cells": [cell(run.rows.get((model, *place))) | {"end": end_of(run, model, *place)} for place in places],
            "verdict": headlines.get(model, ""),
        }
        for model in run.table.models
    ]


def end_of(run: Run, model: str, attack: str | None, key: tuple[str, str]) -> str:
    """What the model knows at the end of an attack, if that is not its peak; empty otherwise."""
    peak, end = run.rows.get((model, attack, key)), run.rows.get((model, attack, ("known_at_end", "forget")))
    if attack is None or key != curve_key(run.table) or peak is None or end is None:
        return ""
    # The end is measured as whether an example is known; another quantity, such as a share of tokens, has no end.
    measured = [
        m.scores.values for m in run.table.measured if (m.model, m.attack, m.scores.key) == (model, attack, key)
    ]
    if not all(is_binary(values) for values in measured):
        return ""
    text = shown(end["value"], end["unit"])
    return "" if text == shown(peak["value"], peak["unit"]) else text


def long_table(run: Run) -> list[Json]:
    """Every estimate over seeds: a line per metric, split and attack, a column per model."""
    lines = []
    for key in run.table.keys:
        for attack in (None, *run.table.attacks):
            cells = [run.rows.get((model, attack, key)) for model in run.table.models]
            known = next((row for row in cells if row is not None), None)
            if known is not None:
                line = {"metric": key[0], "split": key[1], "attack": attack or "", "unit": unit_sign(known["unit"])}
                lines.append(line | {"better": known["better"], "cells": [cell(row) for row in cells]})
    return lines


def cost_table(run: Run) -> Json:
    """The mean cost of one seed of each model, and the total cost of audits, attacks and other stages."""
    lines = []
    for model in run.table.models:
        seconds = mean([stage.seconds for stage in run.made(model)])
        gradients = mean([stage.gradients for stage in run.made(model)])
        share = None if model == ORIGINAL else run.cost_share(model)
        # Work done elsewhere, such as training in a notebook or the unlearning of a checkpoint, has no known cost.
        seconds = None if gradients is None else seconds
        texts = [
            ("" if seconds is None else f"{seconds:.1f}", seconds),
            ("" if gradients is None else f"{gradients:,.0f}", gradients),
            ("" if share is None else percent(share), share),
        ]
        cells = [{"value": text, "interval": "", "sort": _key(value)} for text, value in texts]
        lines.append({"model": NAMES.get(model, model), "cells": cells})
    stages = run.manifest.stages
    others = {
        kind: {
            "count": sum(stage.kind == kind for stage in stages),
            "seconds": sum(stage.seconds for stage in stages if stage.kind == kind),
        }
        for kind in ("measure", "diagnostic", "shadow", "attack", "audit")
    }
    timed = {kind: entry for kind, entry in others.items() if entry["seconds"] >= 0.05}
    return {"lines": lines, "others": timed}


def unit_sign(unit: str) -> str:
    """The unit as a column shows it."""
    return "%" if unit == "share" else unit


def cell(row: Json | None) -> Json:
    """A value with its interval; a value that is not finite is sorted like one that was not measured."""
    if row is None:
        return {"value": "", "interval": "", "sort": None}
    low, high = ends_of(row)
    between = "" if math.isnan(low) else f"{shown(low, row['unit'])} to {shown(high, row['unit'])}"
    return {
        "value": shown(row["value"], row["unit"]),
        "interval": between,
        "sort": None if math.isfinite(row["value"]) else "",
    }


def ends_of(row: Json) -> tuple[float, float]:
    """The interval of a row; that of a share ends at 0 and 1, because Student's may reach beyond."""
    low, high = row["low"], row["high"]
    # Explained shares of the variance may be negative, and then Student's interval is a possible one.
    if row["unit"] != "share" or row["value"] < 0 or math.isnan(low):
        return low, high
    return max(low, 0.0), min(high, 1.0)


def _key(value: float | None) -> float | str:
    return "" if value is None or not math.isfinite(value) else float(f"{value:.6g}")
