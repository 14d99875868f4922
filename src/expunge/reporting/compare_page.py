"""The page that compares two runs: verdicts, settings, every estimate with its difference, and attack curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.reporting import plots
from expunge.reporting.compare import Pair, spelled_setting
from expunge.reporting.page import MANY
from expunge.reporting.record import NAMES, Json
from expunge.reporting.render import write_page
from expunge.reporting.tables import cell, unit_sign
from expunge.reporting.text import curve_key


def write_comparison(pair: Pair, path: Path) -> Path:
    """Write the page of a comparison.

    Args:
        pair: The runs.
        path: The file.

    Returns:
        The file.

    Raises:
        RunError: It could not be written.
    """
    curves = _curves(pair)
    rows = pair.rows()
    context: Json = {
        "names": pair.names,
        "folders": [run.folder.resolve().name for run in (pair.first, pair.second)],
        "about": {key: pair.first.part(key).get("name", "your own") for key in ("data", "forget")},
        "models": [run.part("model").get("name", "model") for run in (pair.first, pair.second)],
        "seeds": pair.seeds,
        "settings": [line | {k: spelled_setting(line[k]) for k in ("first", "second")} for line in pair.settings()],
        "verdicts": pair.verdicts(),
        "rows": [_line(row) for row in rows],
        "sections": curves,
    }
    write_page(path, "compare.html", context, [panel["drawing"] for section in curves for panel in section["panels"]])
    return path


def _line(row: Json) -> Json:
    facts = {"unit": row["unit"]}
    cells = [cell(None if row[name] is None else row[name] | facts) for name in ("first", "second", "difference")]
    if row["difference"] is not None and not cells[2]["value"].startswith(("-", "not")):
        cells[2]["value"] = "+" + cells[2]["value"]
    place = {"metric": row["metric"], "split": row["split"], "attack": row["attack"] or ""}
    return place | {"model": NAMES.get(row["model"], row["model"]), "unit": unit_sign(row["unit"]), "cells": cells}


def _curves(pair: Pair) -> list[Json]:
    """For each attack of both runs, a panel per method of both runs, with the curves of both."""
    key, sections = curve_key(pair.first.table), []
    for attack in [a for a in pair.first.table.attacks if a in pair.second.table.attacks]:
        by_model = {
            model: [plots.attack_curves(run.folder, run.manifest, model, attack) for run in (pair.first, pair.second)]
            for model in pair.models
        }
        span = plots.span_of([curves for both in by_model.values() for curves in both if curves is not None], [])
        reference, second_reference = by_model.pop("reference", [None, None])
        if reference is not None and second_reference is not None and _same(reference, second_reference):
            second_reference = None  # the runs share one retrained model
        panels, many = [], sum(None not in both for both in by_model.values()) > MANY
        for model, (first, second) in by_model.items():
            if first is not None and second is not None:
                title = f"{model}, {attack}"
                drawing = plots.attack_panel(
                    title, first, reference, None, span, (second, second_reference), pair.names, compact=many
                )
                tables = [pair.first.rows, pair.second.rows]
                peaks = [cell(rows.get((model, attack, key)))["value"] for rows in tables]
                panels.append({"model": model, "drawing": drawing, "peaks": peaks})
        if panels:
            one_reference = second_reference is None
            sections.append({"attack": attack, "panels": panels, "one_reference": one_reference, "many": many})
    return sections


def _same(a: plots.Curves, b: plots.Curves) -> bool:
    return np.array_equal(a.at, b.at) and np.array_equal(a.values, b.values)
