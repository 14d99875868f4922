"""Methods by tasks in one table: the gap of each before and after attack, its loss of utility, and its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from expunge.base.reading import consistent
from expunge.base.terminal import one_line
from expunge.reporting.record import Json, Run
from expunge.reporting.text import knowledge_key, percent

HEADINGS = ("run", "task", "method", "verdict", "gap before", "gap after attack", "utility", "cost")
NOTE = (
    "Gaps and utility are unlearned minus retrained (if nothing was retrained: minus unseen examples, and minus the "
    "original), in points, ± half the 90 % interval; the attack is the one that leaves the greatest gap. Cost is in "
    "per-example gradients, as a share of a retraining's."
)


def leaderboard(folders: Sequence[Path]) -> list[Json]:
    """A row per run and method.

    Args:
        folders: Finished runs.

    Returns:
        Plain data: run, task, method, verdict, flags, attack, cost (null where unknown), and for `before`, `after` and
        `utility` a value with `low` and `high`, as shares, or null if it was not measured.

    Raises:
        SpecError: A folder holds no finished run.
        RunError: A file of a record is missing, changed or damaged, or its results do not follow from its scores.
    """
    rows = []
    for folder in folders:
        with consistent(folder):
            rows += _rows(Run.open(folder))
    return rows


def _rows(run: Run) -> list[Json]:
    key = knowledge_key(run.table)
    data, model = run.part("data").get("name", "unnamed data"), run.part("model").get("name", "model")
    task = f"{run.part('forget').get('name', 'a forget set')} on {data}, {model}"
    rows = []
    for verdict in run.verdicts:
        worst = run.worst(verdict["model"], key)
        after = worst if worst is not None and worst["attack"] is not None else None
        rows.append(
            {
                "run": run.name,
                "task": task,
                "method": verdict["model"],
                "verdict": verdict["verdict"],
                "flags": verdict["flags"],
                "before": _ends(run.audit(verdict["model"], *key, None)),
                "after": _ends(after),
                "attack": after["attack"] if after else None,
                "utility": _ends(run.utility(verdict["model"])),
                "cost": run.cost_share(verdict["model"]),
            }
        )
    return rows


def _ends(audit: Json | None) -> Json | None:
    if audit is None:
        return None
    return {"value": float(audit["residual"]), "low": float(audit["low"]), "high": float(audit["high"])}


def markdown(rows: Sequence[Json]) -> str:
    """The rows as a Markdown table and a note that explains it; columns are padded, so that the text is readable."""
    lines = [list(HEADINGS), *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in padded), "", NOTE])


def _cells(row: Json) -> list[str]:
    flags = ", ".join(row["flags"])
    after = _points(row["after"]) + (f" ({row['attack']})" if row["attack"] else "")
    cost = "" if row["cost"] is None else percent(row["cost"])
    words = [row["run"], row["task"], row["method"], flags]
    words += [_points(row["before"]), after, _points(row["utility"]), cost]
    return [one_line(str(word)).replace("|", "\\|") for word in words]


def _points(ends: Json | None) -> str:
    if ends is None:
        return ""
    return points(ends["value"], ends["low"], ends["high"])


def points(value: float, low: float, high: float) -> str:
    """A difference of shares in points, with the half-width of its interval."""
    if not math.isfinite(value):
        return "not finite"
    half = (high - low) / 2
    text = f"{100 * value:+.1f}".replace("-0.0", "+0.0")
    return f"{text} ±{100 * half:.1f}" if math.isfinite(half) else text
