"""The verdict cards of the page: flags with their meaning, a strip of what models know, reasons, and every audit."""

from __future__ import annotations

import math

from expunge.evidence.reasons import points, possible
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting._toml import spelled_value
from expunge.reporting.record import Json, Run
from expunge.reporting.steps import step_of
from expunge.reporting.tables import end_of, unit_sign
from expunge.reporting.text import knowledge_key, shown, utility_key

MEANINGS = {
    "dormant": "Asleep, not gone: an attack brings back clearly more than it does in a retrained model.",
    "incomplete": "Not gone: the model knows clearly more of the forget set than a retrained model.",
    "damaged": "Less useful: clearly worse than a retrained model on what it should keep, by more than 2 points.",
    "over-forgotten": "Marked: the model does clearly worse on these examples than a model that never saw them.",
    "erased": "Gone as far as this run can see: equivalent to retraining, before and after attack, and as useful.",
    "inconclusive": "This run cannot tell: intervals are too wide for what was tested, or something was not measured.",
}
"""Meaning of each flag, for readers who do not know how it is decided."""
CONTROL = "The null control: retrained like the reference, with another seed. What is found here is not unlearning."


def cards(run: Run) -> list[Json]:
    """One card per method, in the spec's order."""
    return [_card(run, verdict) for verdict in run.verdicts]


def scale(run: Run) -> tuple[float, float]:
    """Ends of the strips, as shares: the lowest and highest knowledge of any model, rounded outwards to tenths."""
    key = knowledge_key(run.table)
    values = [row["value"] for (_, _, at), row in run.rows.items() if at == key and math.isfinite(row["value"])]
    low, high = min(values, default=0.0), max(values, default=1.0)
    low, high = math.floor(10 * low + 1e-9) / 10, math.ceil(10 * high - 1e-9) / 10
    return low, max(high, low + 0.1)


def _card(run: Run, verdict: Json) -> Json:
    model, key, rows, (low, high) = verdict["model"], knowledge_key(run.table), run.rows, scale(run)

    def place(row: Json | None) -> Json | None:
        if row is None or not math.isfinite(row["value"]):
            return None
        return {"at": round(100 * (row["value"] - low) / (high - low), 2), "value": shown(row["value"], row["unit"])}

    after = [
        (rows[model, a, key], a) for a in run.table.attacks if (model, a, key) in rows and _proves(run, model, key, a)
    ]
    worst = max(after, key=lambda pair: pair[0]["value"], default=(None, None))
    strip = {
        "original": place(rows.get((ORIGINAL, None, key))),
        "reference": place(rows.get((REFERENCE, None, key))),
        "before": place(rows.get((model, None, key))),
        "after": place(worst[0]),
    }
    first = run.audit(model, *key, None)
    margin = float(first["margin"]) if first else 0.0
    audits = [_audit(run, audit) for audit in verdict["audits"]]
    return {
        **verdict,
        "what": _settings(run, model),
        "next": step_of(run, verdict),
        "course": course(run, model),
        "strip": strip,
        "band": _band(strip["reference"], margin / (high - low)),
        "worst": worst[1],
        "audits": audits,
        "blind": [f"{a['name']} {a['when']}" for a in audits if a["proves"] and not a["power"]],
    }


def _proves(run: Run, model: str, key: tuple[str, str], attack: str) -> bool:
    """Whether the row after an attack counts; `original` and `reference` have no verdict, so theirs do."""
    audit = run.audit(model, *key, attack)
    return audit is None or bool(audit["proves"])


def _band(middle: Json | None, margin: float) -> Json | None:
    """Retrained plus and minus the margin, cut at the ends of the strip."""
    if middle is None or margin <= 0:
        return None
    left, right = max(middle["at"] - 100 * margin, 0.0), min(middle["at"] + 100 * margin, 100.0)
    return {"left": round(left, 2), "width": round(right - left, 2)}


def _settings(run: Run, model: str) -> str:
    entries: list[Json] = run.spec.get("method") or []
    entry: Json = next((e for e in entries if e.get("label", e["name"]) == model), {})
    settings = {k: v for k, v in entry.items() if k not in ("name", "label") and v is not None}
    words = [f"{name} {spelled_value(value)}" for name, value in settings.items()]
    if entry and entry["name"] != model:
        words.insert(0, entry["name"])
    return CONTROL if entry.get("name") == "retrain" else ", ".join(words)


def course(run: Run, model: str) -> Json:
    """What the model knows and what it is good for, before and after each attack, with retrained models beside it."""
    stages: list[str | None] = [None, *run.table.attacks]
    lines = []
    for name, key in (("knows", knowledge_key(run.table)), ("utility", utility_key(run.table))):
        cells = [
            {
                "value": _cell_text(run, model, attack, key),
                "retrained": _cell_text(run, REFERENCE, attack, key) if run.retrained else "",
                "end": end_of(run, model, attack, key),
                "void": attack is not None and not _proves(run, model, key, attack),
            }
            for attack in stages
        ]
        if any(cell["value"] for cell in cells):
            unit = run.rows[model, None, key]["unit"] if (model, None, key) in run.rows else ""
            lines.append({"what": name, "of": " on ".join(key), "unit": unit_sign(unit), "cells": cells})
    return {"columns": ["before", *(f"after {attack}" for attack in run.table.attacks)], "lines": lines}


def _cell_text(run: Run, model: str, attack: str | None, key: tuple[str, str]) -> str:
    row = run.rows.get((model, attack, key))
    return "" if row is None else shown(row["value"], row["unit"])


def _audit(run: Run, audit: Json) -> Json:
    """One line of a verdict's table; shares are in points."""
    known = [row["unit"] for (_, _, key), row in run.rows.items() if key == (audit["metric"], audit["split"])]
    unit = known[0] if known else ""

    def ranged(name: str) -> Json:
        value, low, high = (audit[key] for key in (name, *_ends(name)))
        if value is None:
            return {"value": "", "interval": ""}
        low, high = possible(float(low), float(high), unit, 2.0 if name == "gain" else 1.0)
        return {"value": points(float(value), unit), "interval": f"{points(low, unit)} to {points(high, unit)}"}

    return {
        "name": f"{audit['metric']} on {audit['split']}" + _of_label(audit["label"]),
        "when": f"after {audit['attack']}" if audit["attack"] else "before any attack",
        "required": audit["required"],
        "proves": audit["proves"],
        "residual": ranged("residual"),
        "gain": ranged("gain"),
        "range": ranged("range"),
        "margin": points(float(audit["margin"]), unit),
        "unit": "points" if unit == "share" else unit,
        "power": audit["power"],
        "equivalent": audit["equivalent"],
    }


def _of_label(label: int | None) -> str:
    return "" if label is None else f", label {label} (lost most)"


def _ends(name: str) -> tuple[str, str]:
    return ("low", "high") if name == "residual" else (f"{name}_low", f"{name}_high")
