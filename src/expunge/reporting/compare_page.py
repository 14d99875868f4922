"""The page that shows two runs side by side: verdicts, every estimate with its difference, curves drawn together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.reporting import plots
from expunge.reporting.compare import Pair, spelled_setting
from expunge.reporting.page import MANY
from expunge.reporting.record import NAMES, Json
from expunge.reporting.render import write_page
from expunge.reporting.tables import cell, unit_sign
from expunge.reporting.text import knowledge_key


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
    """Per attack that both have, a panel per method that both tried, with the curves of both."""
    key, sections = knowledge_key(pair.first.table), []
    for attack in [a for a in pair.first.table.attacks if a in pair.second.table.attacks]:
        found = {
            model: [plots.attack_curves(run.folder, run.manifest, model, attack) for run in (pair.first, pair.second)]
            for model in pair.models
        }
        span = plots.span_of([curves for both in found.values() for curves in both if curves is not None], [])
        reference, other = found.pop("reference", [None, None])
        if reference is not None and other is not None and _same(reference, other):
            other = None  # one retrained model serves both
        panels, many = [], sum(None not in both for both in found.values()) > MANY
        for model, (first, second) in found.items():
            if first is not None and second is not None:
                title = f"{model}, {attack}"
                drawing = plots.attack_panel(
                    title, first, reference, None, span, (second, other), pair.names, compact=many
                )
                ends = [pair.first.rows, pair.second.rows]
                peaks = [cell(rows.get((model, attack, key)))["value"] for rows in ends]
                panels.append({"model": model, "drawing": drawing, "peaks": peaks})
        if panels:
            sections.append({"attack": attack, "panels": panels, "one_reference": other is None, "many": many})
    return sections


def _same(a: plots.Curves, b: plots.Curves) -> bool:
    return np.array_equal(a.at, b.at) and np.array_equal(a.values, b.values)
