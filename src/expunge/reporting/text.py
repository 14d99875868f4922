"""Text for the terminal: the table of verdicts and the table of costs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evidence.table import Table
from expunge.evidence.verdict import Verdict

WIDTH = 100
REASONS = 2
"""Reasons per method in the terminal; the page has all of them."""
ROUNDING = 1e-7
"""Weights and losses are in single precision, so smaller values are shown as 0."""
VALUE = ("value_recall", "forget")
"""The share of facts, where the data name the fact in an answer."""
Row = dict[str, Any]
Columns = dict[str, tuple[str | None, tuple[str, str]]]
"""Heading -> (attack, (metric, split))."""


def verdict_table(table: Table, verdicts: Sequence[Verdict]) -> str:
    """The result of a run, in 100 columns.

    Args:
        table: The run's table.
        verdicts: One per method.

    Returns:
        A line per model with the mean over seeds and the half-width of its 90 % interval, then each method's verdict
        with its first reasons.
    """
    rows = over_seeds(table)
    columns = columns_of(table)
    headlines = {verdict.model: verdict.verdict for verdict in verdicts}
    cells = {model: [cell(rows.get((model, *column))) for column in columns.values()] for model in table.models}
    headings, left_out = list(columns), []
    for least in ("L2", "retain", "test"):
        if _width(headings, cells, headlines) > WIDTH and least in headings:
            place = headings.index(least)
            left_out.append(headings.pop(place))
            cells = {model: [*row[:place], *row[place + 1 :]] for model, row in cells.items()}
    lines = _aligned(
        [["model", *headings, "verdict"]]
        + [[model, *row, headlines.get(model, "")] for model, row in cells.items() if any(row)]
    )
    lines[1:1] = ["-" * max(map(len, lines))]
    note = f"Mean over {counted(len(table.seeds), 'seed')} ± half its 90 % interval; shares of examples in %."
    if columns["forget"][1] == VALUE:
        note += " What is known of forget is the share of facts (value_recall), not of words."
    lines += ["", *textwrap.wrap(note + (f" Not shown: {', '.join(left_out)}." if left_out else ""), WIDTH)]
    for verdict in verdicts:
        lines += ["", *_verdict_lines(verdict)]
    return "\n".join(lines)


def over_seeds(table: Table) -> dict[tuple[str, str | None, tuple[str, str]], Row]:
    """The rows over seeds by model, attack and (metric, split). A single model keeps its interval over examples."""
    means: dict[tuple[str, str | None, tuple[str, str]], Row] = {}
    for row in table.rows():
        place = row["model"], row["attack"], (row["metric"], row["split"])
        if row["seed"] is None and row["n"] == 1 and place in means:
            means[place] |= {"seed": None, "gap": row["gap"], "alone": True}
        else:
            means[place] = row
    return means


def columns_of(table: Table) -> Columns:
    """The columns of the short table: knowledge of the forget set before and after each attack, utility, and L2."""
    forget = knowledge_key(table)
    columns: Columns = {"forget": (None, forget)}
    columns |= {f"after {attack}": (attack, forget) for attack in table.attacks}
    useful = utility_metric(table)
    further = {"retain": (useful, "retain"), "test": (useful, "test"), "L2": ("l2_distance", "weights")}
    return columns | {heading: (None, key) for heading, key in further.items() if key in table.keys}


def curve_key(table: Table) -> tuple[str, str]:
    """Metric and split of the knowledge that an attack follows step by step: the objective's first that is required."""
    return next((m.scores.key for m in table.measured if m.scores.required), ("accuracy", "forget"))


def knowledge_key(table: Table) -> tuple[str, str]:
    """Metric and split of the knowledge that tables and cards show; every verdict requires it.

    Where the data name the fact in an answer, it is the share of facts. Retrained models know the words around it, too.
    """
    return VALUE if any(m.scores.required and m.scores.key == VALUE for m in table.measured) else curve_key(table)


def utility_metric(table: Table) -> str:
    """The metric whose value on the test set is utility."""
    return utility_key(table)[0]


def utility_key(table: Table) -> tuple[str, str]:
    """Metric and split of the first utility that was measured over all labels."""
    utilities = [m.scores.key for m in table.measured if m.scores.role == "utility" and m.scores.label is None]
    return utilities[0] if utilities else ("accuracy", "test")


def cell(row: Row | None) -> str:
    """A value and the half-width of its interval, empty if nothing was measured."""
    if row is None:
        return ""
    half = (row["high"] - row["low"]) / 2
    value = shown(row["value"], row["unit"])
    if math.isnan(half):
        return value
    return f"{value} ±{shown(half, 'share')}" if row["unit"] == "share" else f"{value} ±{half:.2g}"


def shown(value: float, unit: str) -> str:
    """A share in per cent with one decimal, any other value with three digits."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "share":
        return f"{100 * value:.1f}"
    return f"{0.0 if abs(value) < ROUNDING else value:.3g}"


def costs_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """The cost of each kind of stage.

    Args:
        costs: Name -> stages, seconds and gradients, as `RunResult.costs`; unknown gradients are NaN.

    Returns:
        A line per kind; for methods with the cost of one run as a share of a retraining's gradients.
    """
    retraining = _each(costs.get("reference", {}), "gradients")
    lines = [["stage", "times", "seconds", "gradients", "of retraining"]]
    for name, entry in costs.items():
        share = _each(entry, "gradients") / retraining if retraining and name.startswith("unlearn") else math.nan
        lines.append(
            [
                name,
                f"{entry['stages']:.0f}",
                f"{entry['seconds']:.1f}",
                f"{entry['gradients']:,.0f}" if entry["gradients"] > 0 else "-",
                "" if math.isnan(share) else percent(share),
            ]
        )
    return "\n".join(_aligned(lines))


def percent(share: float) -> str:
    """A share of a cost in per cent, with the two digits that a comparison needs."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _each(entry: Mapping[str, float], what: str) -> float:
    return entry[what] / entry["stages"] if entry.get("stages") else 0.0


def _verdict_lines(verdict: Verdict) -> list[str]:
    lines = [f"{verdict.model}: {', '.join(verdict.flags)}"]
    for reason in verdict.reasons[:REASONS]:
        lines += textwrap.wrap(reason, WIDTH, initial_indent="  ", subsequent_indent="    ")
    more = len(verdict.reasons) - REASONS
    return [*lines, f"  and {counted(more, 'more reason')} in the report"] if more > 0 else lines


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *rest = widths
    out = []
    for line in lines:
        name, *cells = line
        words = [name.ljust(first)]
        for word, width in zip(cells, rest, strict=True):
            # The last column of the verdicts is text, the others are numbers.
            words.append(word.ljust(width) if lines[0][-1] == "verdict" and word is cells[-1] else word.rjust(width))
        out.append("  ".join(words).rstrip())
    return out


def _width(headings: list[str], cells: dict[str, list[str]], headlines: dict[str, str]) -> int:
    lines = [["model", *headings, "verdict"]] + [[m, *row, headlines.get(m, "")] for m, row in cells.items()]
    return max(map(len, _aligned(lines)))


def counted(count: int, what: str, plural: str = "") -> str:
    """The number with its noun; without a given plural the noun takes an s."""
    return f"{count} {what if count == 1 else plural or what + 's'}"
