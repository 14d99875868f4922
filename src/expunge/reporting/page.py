"""The report: one HTML file that explains a run to a new reader, made from the run's folder alone.

It shows, in this order: verdicts and their limits, estimates beside those of original and retrained, attack curves, the
trade-off, a map of weight space, the diagnosis, the forget examples, costs, and the spec with the command that runs it
again. It needs no network and no server. The record beside it holds what the page leaves out.
"""

from __future__ import annotations

import math
from pathlib import Path

from expunge.base.reading import consistent
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting import plots
from expunge.reporting._toml import toml
from expunge.reporting.cards import MEANINGS, cards, scale
from expunge.reporting.classes import classes
from expunge.reporting.diagnosis import diagnosis
from expunge.reporting.examples import examples
from expunge.reporting.next_steps import advice
from expunge.reporting.pictures import histograms, maps
from expunge.reporting.record import NAMES, Json, Run
from expunge.reporting.render import write_page
from expunge.reporting.tables import cell, cost_table, long_table, short_table
from expunge.reporting.text import columns_of, counted, curve_key, knowledge_key, shown
from expunge.reporting.tradeoff import tradeoff
from expunge.reporting.weights import Map, map_of, map_panel

STRAINED = 0.2
"""Stress above which the map is called rough."""
MANY = 6
"""With more methods than this, panels are small and ordered by the residual."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a finished run's folder.

    Args:
        folder: The run's folder, `runs/<name>`.

    Returns:
        The file.

    Raises:
        SpecError: The folder holds no run, or one that has not finished.
        RunError: A file of the record is missing, changed or damaged, its results do not follow from its scores, or the
            page could not be written.
    """
    with consistent(folder):
        return _written(Run.open(folder))


def _written(run: Run) -> Path:
    placed = map_of(run)
    shown_map = map_panel(placed) if isinstance(placed, Map) else None
    curves, paths, traded = curve_sections(run), path_panels(run), tradeoff(run)
    order = in_order(run)
    many = len(run.methods) > MANY
    losses, answered = histograms(run, order, compact=many), maps(run, order)
    context = {
        **_subject(run),
        "classes": classes(run, order),
        "losses": losses,
        "maps": answered,
        "advice": advice(run),
        "cards": cards(run),
        "scale": [f"{100 * end:.0f}" for end in scale(run)],
        "columns": list(columns_of(run.table)),
        "short": short_table(run),
        "models": [NAMES.get(model, model) for model in run.table.models],
        "long": long_table(run),
        "curves": curves,
        "many": many,
        "tradeoff": traded,
        "unpriced": all(run.cost_share(model) is None for model in run.methods),
        "map": shown_map,
        "no_map": placed if isinstance(placed, str) else "",
        "map_seeds": placed.seeds if isinstance(placed, Map) else 0,
        "stress": f"{placed.stress:.2f}" if isinstance(placed, Map) else "",
        "strained": isinstance(placed, Map) and placed.stress > STRAINED,
        "paths": paths,
        "diagnosis": diagnosis(run),
        "examples": examples(run),
        "costs": cost_table(run),
        "toml": toml(run.spec),
    }
    drawn = (*(p for s in curves for p in s["panels"]), *paths, *losses, *answered)
    panels = [entry["drawing"] for entry in drawn]
    path = run.folder / "report.html"
    write_page(path, "page.html", context, [*panels, *(d for d in (traded, shown_map) if d is not None)])
    return path


def _subject(run: Run) -> Json:
    """The subject of the run: model, data, forget set and environment, as far as the record holds them."""
    return {
        "name": run.name,
        "model": run.part("model").get("name", "model"),
        "data": run.part("data").get("name", "unnamed data"),
        "forget": run.part("forget").get("name", "a forget set"),
        "count": _forgotten(run.part("forget")),
        "seeds": run.table.seeds,
        "threads": run.spec.get("threads"),
        "environment": {"packages": {}, "commit": None} | run.environment,
        "about_one_model": run.table.about_one_model,
        "retrained": run.retrained,
        "again": run.again,
        "attacks": list(run.table.attacks),
        "meanings": MEANINGS,
        "known": " on ".join(knowledge_key(run.table)),
        "followed": " on ".join(curve_key(run.table)),
    }


def _forgotten(forget: Json) -> str:
    """Size of the forget set, empty if the spec does not give it; every copy of a text is a training example."""
    count, copies = forget.get("count"), forget.get("copies")
    if not count:
        return ""
    if copies in (None, 1):
        return counted(count, "example")
    return f"{counted(count, 'text')} in {counted(copies, 'copy', 'copies')} each: {counted(count * copies, 'example')}"


def curve_sections(run: Run) -> list[Json]:
    """For each attack a panel per method, all on the same scale, in the order of `in_order`."""
    key, sections = curve_key(run.table), []
    methods = in_order(run)
    level = original_level(run)
    for attack in run.table.attacks:
        read = {m: plots.attack_curves(run.folder, run.manifest, m, attack) for m in run.table.models}
        curves = {model: entry for model, entry in read.items() if entry is not None}
        span = plots.span_of(list(curves.values()), [] if level is None else [level])
        panels = []
        for model in [m for m in methods if m in curves]:
            title, reference = f"{model}, {attack}", curves.get(REFERENCE)
            drawing = plots.attack_panel(title, curves[model], reference, level, span, compact=len(methods) > MANY)
            # The mean over seeds of each seed's peak, as in the table, not the peak of the mean curve.
            peak = cell(run.rows.get((model, attack, key)))["value"]
            start = shown(float(curves[model].mean()[0]), "share")
            panels.append({"model": model, "drawing": drawing, "start": start, "peak": peak})
        if panels:
            sections.append({"attack": attack, "panels": panels})
    return sections


def in_order(run: Run) -> list[str]:
    """The methods in the order of the panels: the spec's order; if there are many, the greatest residual first."""
    if len(run.methods) <= MANY:
        return run.methods
    worst = {model: run.worst(model, knowledge_key(run.table)) for model in run.methods}
    left = {model: float(entry["residual"]) if entry else math.nan for model, entry in worst.items()}
    return sorted(run.methods, key=lambda model: -left[model] if math.isfinite(left[model]) else math.inf)


def original_level(run: Run) -> float | None:
    """The original's knowledge of the forget set before any attack, none if it was not measured."""
    row = run.rows.get((ORIGINAL, None, curve_key(run.table)))
    return float(row["value"]) if row and math.isfinite(row["value"]) else None


def path_panels(run: Run) -> list[Json]:
    """The loss on the path from the original to each other model; empty if the path audit did not run."""
    panels = []
    for model in (REFERENCE, *in_order(run)):
        named = {split: plots.path_curves(run.table, model, split) for split in ("forget", "retain")}
        losses = {split: curves for split, curves in named.items() if curves is not None}
        if losses:
            drawing = plots.path_panel(f"{model}, path", losses, compact=len(run.methods) > MANY)
            barriers = [(split, run.rows[model, None, ("barrier", split)]["value"]) for split in losses]
            text = ", ".join(f"{split} {shown(value, 'nats')}" for split, value in barriers)
            panels.append({"model": NAMES.get(model, model), "drawing": drawing, "barriers": text})
    return panels
