"""Classes on the page: accuracy per class of every model, and who is taken for what among the forget examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from expunge.base.manifest import read_json
from expunge.evidence.scores import Scores
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting.record import NAMES, Json, Run
from expunge.reporting.text import curve_key, shown, utility_metric

MOST_CLASSES = 20
"""With more classes, only those that lost most are shown, and no table of answers."""
MOST_TABLES = 8
"""Tables of answers on the page: original, retrained, and the methods that leave most."""


def classes(run: Run, methods: Sequence[str]) -> Json | None:
    """Accuracy per class, and the tables of answers; none without classes.

    Args:
        run: The run.
        methods: The methods in the order in which tables of answers are shown.
    """
    per_class = _per_class(run)
    if not per_class:
        return None
    names = class_names(run)
    models = [model for model in run.table.models if model in per_class]
    lines = [_line(label, names, per_class, models) for label in _shown_labels(per_class)]
    reference = per_class.get(REFERENCE, per_class.get(ORIGINAL, {}))
    return {
        "models": [NAMES.get(model, model).replace(" (reference)", "") for model in models],
        "lines": lines,
        "left_out": len(reference) - len(lines),
        "tables": _tables(run, [ORIGINAL, REFERENCE, *methods], names),
        "of": utility_metric(run.table),
    }


def class_names(run: Run) -> list[str]:
    """Names of the classes, which only a gallery holds; empty if there is none."""
    file = run.manifest.file("examples")
    if file is None or not (run.folder / file.path).is_file():
        return []
    return [str(name) for name in read_json(run.folder, file.path, file.sha256).get("labels", [])]


def _per_class(run: Run) -> dict[str, dict[int, float]]:
    """Model -> class -> the mean over seeds of its share of right answers on the test set, before any attack."""
    key = (f"worst_label_{utility_metric(run.table)}", "test")
    found: dict[str, dict[int, float]] = {}
    for model in run.table.models:
        seeds = [run.table.get(model, seed, None, key) for seed in run.table.seeds]
        scores = [entry for entry in seeds if entry is not None and entry.label is not None and entry.unit == "share"]
        labels = {label for entry in scores for label in entry.labels()}
        if labels:
            found[model] = {label: float(np.mean([_mean_of(entry, label) for entry in scores])) for label in labels}
    return found


def _mean_of(scores: Scores, label: int) -> float:
    return float(scores.values[scores.label == label].mean())


def _shown_labels(per_class: dict[str, dict[int, float]]) -> list[int]:
    labels = sorted(set.intersection(*(set(by_label) for by_label in per_class.values())))
    if len(labels) <= MOST_CLASSES:
        return labels
    base = per_class.get(REFERENCE, per_class.get(ORIGINAL, {}))
    lost = {label: min(by_label[label] - base[label] for by_label in per_class.values()) for label in labels}
    return sorted(sorted(labels, key=lambda label: lost[label])[:MOST_CLASSES])


def _line(label: int, names: Sequence[str], per_class: dict[str, dict[int, float]], models: Sequence[str]) -> Json:
    base = per_class.get(REFERENCE, {}).get(label)
    cells = []
    for model in models:
        value = per_class[model][label]
        gap = None if base is None or model in (ORIGINAL, REFERENCE) else value - base
        text = "" if gap is None else f"{100 * gap:+.1f}"
        cells.append({"value": shown(value, "share"), "gap": text, "lost": gap is not None and gap <= -0.1})
    return {"name": _named(label, names), "cells": cells}


def _named(label: int, names: Sequence[str]) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _tables(run: Run, models: Sequence[str], names: Sequence[str]) -> list[Json]:
    """For each model the share of each answer among the forget examples of each class, over all seeds."""
    answers = {model: _answers(run, model) for model in models}
    counted = {model: pairs for model, pairs in answers.items() if pairs is not None}
    if not counted:
        return []
    used = sorted({int(label) for pairs in counted.values() for label in pairs.ravel()})
    if len(used) > MOST_CLASSES:
        return []
    return [
        {
            "model": NAMES.get(model, model).replace(" (reference)", ""),
            "said": [_named(label, names) for label in used],
            "rows": _rows(pairs, used, names),
        }
        for model, pairs in list(counted.items())[:MOST_TABLES]
    ]


def _answers(run: Run, model: str) -> npt.NDArray[np.int64] | None:
    """Target and answer of each forget example, `[n, 2]`, all seeds together; none in older records."""
    scores = [run.table.get(model, seed, None, _forget_key(run)) for seed in run.table.seeds]
    pairs = [np.stack([s.target, s.answer], 1) for s in scores if s and s.target is not None and s.answer is not None]
    return np.concatenate(pairs) if pairs else None


def _forget_key(run: Run) -> tuple[str, str]:
    return curve_key(run.table)


def _rows(pairs: npt.NDArray[np.int64], used: Sequence[int], names: Sequence[str]) -> list[Json]:
    rows: list[Json] = []
    for target in used:
        of = pairs[pairs[:, 0] == target, 1]
        if of.size:
            cells: list[Any] = [_cell(float((of == said).mean()), said == target) for said in used]
            rows.append({"name": _named(target, names), "cells": cells})
    return rows


def _cell(share: float, right: bool) -> Json:
    """The share in whole per cent, empty if it is none, and how dark the cell is, in tenths."""
    return {"text": f"{100 * share:.0f}" if share else "", "dark": round(10 * share), "right": right}
