"""The verdict cards of the page: flags with their meaning, a strip of what models know, reasons, and every audit."""

from __future__ import annotations

import math
from typing import Any

from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting._toml import spelled_value
from expunge.reporting.record import Json, Run
from expunge.reporting.text import knowledge_key, shown

MEANINGS = {
    "dormant": "Asleep, not gone: an attack brings back clearly more than it does in a retrained model.",
    "incomplete": "Not gone: the model knows clearly more of the forget set than a retrained model.",
    "damaged": "Less useful: the model is clearly worse on test data than a retrained model, by more than 2 points.",
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
    audits = [_audit(audit) for audit in verdict["audits"]]
    return {
        **verdict,
        "what": _settings(run, model),
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


def _audit(audit: Json) -> Json:
    """One line of a verdict's table, in the units of the reasons: shares, not per cent."""

    def ranged(name: str) -> Json:
        value, low, high = (audit[key] for key in (name, *_ends(name)))
        if value is None:
            return {"value": "", "interval": ""}
        return {"value": _number(value), "interval": f"{_number(low)} to {_number(high)}"}

    return {
        "name": f"{audit['metric']} on {audit['split']}" + _of_label(audit["label"]),
        "when": f"after {audit['attack']}" if audit["attack"] else "before any attack",
        "required": audit["required"],
        "proves": audit["proves"],
        "residual": ranged("residual"),
        "gain": ranged("gain"),
        "range": ranged("range"),
        "margin": _number(audit["margin"]),
        "power": audit["power"],
        "equivalent": audit["equivalent"],
    }


def _of_label(label: int | None) -> str:
    return "" if label is None else f", label {label} (lost most)"


def _ends(name: str) -> tuple[str, str]:
    return ("low", "high") if name == "residual" else (f"{name}_low", f"{name}_high")


def _number(value: Any) -> str:
    return shown(float(value), "")  # JSON holds NaN and infinities as strings
