"""The report: one HTML file that shows a run to somebody who knows nothing of it, made from the run's folder alone.

Verdicts and their limits first, then estimates beside original and retrained, attack curves, paths, costs, and the
spec with the command that runs it again. No network, no server; what cannot be seen here is in the record beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from expunge.base.record import write_file
from expunge.evidence.table import ORIGINAL, REFERENCE, Table
from expunge.reporting import plots
from expunge.reporting._toml import spelled_value, toml
from expunge.reporting.text import columns_of, knowledge_key, over_seeds, percent, shown
from expunge.reporting.verify import read_json, read_manifest, read_run

HERE = Path(__file__).parent
MEANINGS = {
    "dormant": "Asleep, not gone: an attack brings back clearly more than it does in a retrained model.",
    "incomplete": "Not gone: it knows clearly more of the forget set than a retrained model.",
    "damaged": "Hurt: it is clearly worse on test data than a retrained model, by more than 2 points.",
    "over-forgotten": "Marked: it does clearly worse on these examples than a model that never saw them.",
    "erased": "Gone as far as this run can see: equivalent to retraining, before and after attack, and as useful.",
    "inconclusive": "This run cannot tell: its intervals are too wide, or something needed was not measured.",
}
"""What each flag says, for people who have not read how it is decided."""
CONTROL = "The null control: retrained like the reference, with another seed. What is found here is not unlearning."
NAMES = {ORIGINAL: "original", REFERENCE: "retrained (reference)"}

Json = dict[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` into a finished run's folder.

    Args:
        folder: The run's folder, `runs/<name>`.

    Returns:
        The file.

    Raises:
        SpecError: The folder holds no run, or one that has not finished.
        RunError: A file of the record is missing or damaged, or the page could not be written.
    """
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    path = folder / "report.html"
    write_file(path, environment.get_template("page.html").render(_Page.of(folder).context()))
    return path


@dataclass(frozen=True)
class _Page:
    folder: Path
    manifest: Json
    spec: Json
    environment: Json
    verdicts: list[Json]
    table: Table

    @classmethod
    def of(cls, folder: Path) -> _Page:
        manifest = read_manifest(folder)
        spec, environment, verdicts = (read_json(folder / f"{name}.json") for name in ("spec", "env", "verdicts"))
        return cls(folder, manifest, spec, environment, verdicts, read_run(folder, manifest))

    @property
    def methods(self) -> list[str]:
        return [model for model in self.table.models if model not in (ORIGINAL, REFERENCE)]

    def context(self) -> Json:
        """Everything that the template shows."""
        rows = over_seeds(self.table)
        return {
            "css": Markup((HERE / "page.css").read_text(encoding="utf-8")),
            "spec": self.spec,
            "environment": self.environment,
            "about_one_model": self.table.about_one_model,
            "attacks": list(self.table.attacks),
            "tally": Counter(verdict["verdict"] for verdict in self.verdicts),
            "meanings": MEANINGS,
            "known": " on ".join(knowledge_key(self.table)),
            "scale": [f"{100 * end:.0f}" for end in self._scale(rows)],
            "cards": [self._card(verdict, rows) for verdict in self.verdicts],
            "columns": list(columns_of(self.table)),
            "short": self._short(rows),
            "models": [NAMES.get(model, model) for model in self.table.models],
            "long": self._long(rows),
            "curves": self._curves(rows),
            "paths": self._paths(rows),
            "costs": self._costs(),
            "toml": toml(self.spec),
        }

    def _scale(self, rows: Mapping[Any, Json]) -> tuple[float, float]:
        """What the strips span: all that is known of the forget set by any model, rounded out to tenths."""
        key = knowledge_key(self.table)
        values = [row["value"] for (_, _, at), row in rows.items() if at == key and math.isfinite(row["value"])]
        low, high = min(values, default=0.0), max(values, default=1.0)
        low, high = math.floor(10 * low + 1e-9) / 10, math.ceil(10 * high - 1e-9) / 10
        return low, max(high, low + 0.1)

    def _card(self, verdict: Json, rows: Mapping[Any, Json]) -> Json:
        model, key, (low, high) = verdict["model"], knowledge_key(self.table), self._scale(rows)

        def place(row: Json | None) -> Json | None:
            if row is None or not math.isfinite(row["value"]):
                return None
            return {
                "at": round(100 * (row["value"] - low) / (high - low), 2),
                "value": shown(row["value"], row["unit"]),
            }

        after = [(rows[model, attack, key], attack) for attack in self.table.attacks if (model, attack, key) in rows]
        worst = max(after, key=lambda pair: pair[0]["value"], default=(None, None))
        strip = {
            "original": place(rows.get((ORIGINAL, None, key))),
            "reference": place(rows.get((REFERENCE, None, key))),
            "before": place(rows.get((model, None, key))),
            "after": place(worst[0]),
        }
        first = next((a for a in verdict["audits"] if (a["metric"], a["split"], a["attack"]) == (*key, None)), None)
        margin = float(first["margin"]) if first else 0.0
        band = None
        if strip["reference"] and margin > 0:
            width, middle = 100 * margin / (high - low), strip["reference"]["at"]
            left, right = max(middle - width, 0.0), min(middle + width, 100.0)
            band = {"left": round(left, 2), "width": round(right - left, 2)}
        audits = [_audit(audit) for audit in verdict["audits"]]
        return {
            **verdict,
            "what": self._entry_text(model),
            "strip": strip,
            "band": band,
            "worst": worst[1],
            "margin": shown(margin, "share"),
            "audits": audits,
            "blind": [f"{a['name']} {a['when']}" for a in audits if not a["power"]],
        }

    def _entry_text(self, model: str) -> str:
        entry: Json = next((e for e in self.spec["method"] if e.get("label", e["name"]) == model), {})
        settings = {k: v for k, v in entry.items() if k not in ("name", "label") and v is not None}
        told = [f"{name} {spelled_value(value)}" for name, value in settings.items()]
        if entry and entry["name"] != model:
            told.insert(0, entry["name"])
        return CONTROL if entry.get("name") == "retrain" else ", ".join(told)

    def _short(self, rows: Mapping[Any, Json]) -> list[Json]:
        headlines = {verdict["model"]: verdict["verdict"] for verdict in self.verdicts}
        places = columns_of(self.table).values()
        return [
            {
                "model": NAMES.get(model, model),
                "cells": [_cell(rows.get((model, *place))) for place in places],
                "verdict": headlines.get(model, ""),
            }
            for model in self.table.models
        ]

    def _long(self, rows: Mapping[Any, Json]) -> list[Json]:
        """Every estimate over seeds: a line per metric, split and attack, a column per model."""
        lines = []
        for key in self.table.keys:
            for attack in (None, *self.table.attacks):
                cells = [rows.get((model, attack, key)) for model in self.table.models]
                known = next((row for row in cells if row is not None), None)
                if known is not None:
                    line = {"metric": key[0], "split": key[1], "attack": attack or "", "unit": _unit(known["unit"])}
                    lines.append(line | {"better": known["better"], "cells": [_cell(row) for row in cells]})
        return lines

    def _curves(self, rows: Mapping[Any, Json]) -> list[Json]:
        """Per attack one panel per method, all on the same scale."""
        original, sections = rows.get((ORIGINAL, None, knowledge_key(self.table))), []
        level = original["value"] if original and math.isfinite(original["value"]) else None
        for attack in self.table.attacks:
            named = {m: plots.attack_curves(self.folder, self.manifest, m, attack) for m in self.table.models}
            found = {model: curves for model, curves in named.items() if curves is not None}
            span = plots.span_of(list(found.values()), [] if level is None else [level])
            panels = []
            for model in [m for m in self.methods if m in found]:
                svg = plots.attack_panel(f"{model}, {attack}", found[model], found.get(REFERENCE), level, span)
                # The peak of each seed, then the mean: what the table has, and not the peak of the mean curve.
                peak = rows.get((model, attack, knowledge_key(self.table)))
                start = shown(float(found[model].mean()[0]), "share")
                panels.append({"model": model, "svg": Markup(svg), "start": start, "peak": _cell(peak)["value"]})
            if panels:
                sections.append({"attack": attack, "panels": panels})
        return sections

    def _paths(self, rows: Mapping[Any, Json]) -> list[Json]:
        """The loss on the way from the original to each other model, where the path audit ran."""
        found: dict[str, dict[str, plots.Curves]] = {}
        for model in (REFERENCE, *self.methods):
            for split in ("forget", "retain"):
                if (curves := plots.path_curves(self.table, model, split)) is not None:
                    found.setdefault(model, {})[split] = curves
        panels = []
        for model, losses in found.items():
            barriers = [(split, rows[model, None, ("barrier", split)]["value"]) for split in losses]
            svg = plots.path_panel(f"{model}, path", losses)
            told = ", ".join(f"{split} {shown(value, 'nats')}" for split, value in barriers)
            panels.append({"model": NAMES.get(model, model), "svg": Markup(svg), "barriers": told})
        return panels

    def _costs(self) -> Json:
        """What one seed of each model cost, and what the audits and attacks of all cost together."""
        stages = self.manifest["stages"]
        training = [stage for stage in stages if stage["kind"] not in ("measure", "shadow", "attack", "audit")]
        made = [(model, [s for s in training if s["model"] == model]) for model in self.table.models]
        retraining = next((_mean(found, "gradients") for model, found in made if model == REFERENCE), 0.0)
        lines = []
        for model, found in made:
            gradients, share = _mean(found, "gradients"), ""
            if retraining and model != ORIGINAL:
                share = percent(gradients / retraining)
            cells = {"seconds": _mean(found, "seconds"), "gradients": gradients}
            lines.append({"model": NAMES.get(model, model), "share": share, **cells})
        others = {
            kind: {
                "count": sum(s["kind"] == kind for s in stages),
                "seconds": sum(s["seconds"] for s in stages if s["kind"] == kind),
            }
            for kind in ("measure", "shadow", "attack", "audit")
        }
        return {"lines": lines, "others": {kind: entry for kind, entry in others.items() if entry["count"]}}


def _mean(stages: list[Json], what: str) -> float:
    return sum(stage[what] for stage in stages) / len(stages) if stages else 0.0


def _unit(unit: str) -> str:
    return "%" if unit == "share" else unit


def _cell(row: Json | None) -> Json:
    """A value with its interval, and what to sort it by."""
    if row is None:
        return {"value": "", "interval": "", "sort": ""}
    low, high = row["low"], row["high"]
    between = "" if math.isnan(low) else f"{shown(low, row['unit'])} to {shown(high, row['unit'])}"
    return {"value": shown(row["value"], row["unit"]), "interval": between, "sort": row["value"]}


def _audit(audit: Json) -> Json:
    """One line of a verdict's table, in the units of its reasons: shares, not per cent."""

    def told(name: str) -> Json:
        value, low, high = (audit[key] for key in (name, *_ends(name)))
        if value is None:
            return {"value": "", "interval": ""}
        return {"value": _number(value), "interval": f"{_number(low)} to {_number(high)}"}

    return {
        "name": f"{audit['metric']} on {audit['split']}",
        "when": f"after {audit['attack']}" if audit["attack"] else "before any attack",
        "required": audit["required"],
        "residual": told("residual"),
        "gain": told("gain"),
        "range": told("range"),
        "margin": _number(audit["margin"]),
        "power": audit["power"],
        "equivalent": audit["equivalent"],
    }


def _ends(name: str) -> tuple[str, str]:
    return ("low", "high") if name == "residual" else (f"{name}_low", f"{name}_high")


def _number(value: Any) -> str:
    return shown(float(value), "")  # a number that is not finite is spelled out in JSON
