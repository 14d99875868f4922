"""Registered parts as lines of text; imports nothing heavy, because `expunge list` must answer at once."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.reporting._toml import toml

WIDTH = 100

METHODS = {"name": "name", "year": "year", "paper": "paper", "needs": "needs", "effort": "cost"}
"""Fact -> heading of the table of methods."""
LEGEND = """
cost in per-example gradients: R retain examples, F forget examples, B forget examples of one
batch beside every batch of R, E epochs; untargeted methods take no gradient of the forget set
and remove what they consider memorised anywhere; `expunge show NAME` gives it in full"""


def listing(parts: Sequence[Mapping[str, Any]], *, whole: bool) -> str:
    """Registered parts, one a line, for `expunge list`.

    Args:
        parts: `registry.facts` of each part.
        whole: Add the paper, needs and cost below each part, if its file gives them.

    Returns:
        Lines, indented by two.
    """
    width = max(len(part["name"]) for part in parts)
    lines = []
    for part in parts:
        lines.append(f"  {part['name']:{width}}  {part['summary']}")
        facts = dict(part, paper=paper_of(part))
        details = [f"{key}: {facts[key]}" for key in ("paper", "needs", "cost") if facts[key]] if whole else []
        lines += [f"  {'':{width}}    {line}" for line in details]
    return "\n".join(lines)


def methods_table(parts: Sequence[Mapping[str, Any]]) -> str:
    """Methods in aligned columns, for `expunge list methods`.

    Args:
        parts: `registry.facts` of each method.

    Returns:
        A line of headings, a line per method, indented by two, and a legend of the letters.
    """
    rows = [list(METHODS.values()), *([str(part[fact] or "") for fact in METHODS] for part in parts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"  {line}".rstrip() for line in lines) + "\n" + LEGEND


def paper_of(part: Mapping[str, Any]) -> str:
    """A part's paper with its year; empty if its file names none."""
    return ", ".join(str(part[key]) for key in ("paper", "year") if part[key])


def diagnosed(
    label: str, rows: Mapping[str, Mapping[str, Any]], sentence: str, proposal: Sequence[Mapping[str, Any]]
) -> str:
    """One diagnostic in words: what it recommends, with the tables to paste into a spec, then its estimates.

    Args:
        label: Its label.
        rows: Its estimates by name, see `estimates`.
        sentence: What they mean, may be empty.
        proposal: Tables of methods for a spec; mostly none.
    """
    lines = [label, *textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="  ")]
    if proposal:
        lines += ["", "  To try it, paste this into the spec:", "", toml({"method": [dict(t) for t in proposal]})]
    return "\n".join([*lines, estimates(rows)])


def estimates(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Estimates by name, one a line with its 90 % interval; NaN and infinities may be given as strings."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {_estimate(e)}" for name, e in rows.items())


def _estimate(row: Mapping[str, Any]) -> str:
    """A value with its interval in words: shares in %, no impossible bound, no infinite value."""
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    share, count = row["unit"] == "share", f"n = {row['n']}"
    if not math.isfinite(value):
        return f"beyond what this sample can tell, {count}"
    if share and 0 <= value <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    unit = "%" if share else row["unit"]

    def number(x: float) -> str:
        # Rates per step are small and must not be printed as 0.
        return f"{100 * x:.1f}" if share else f"{x:.3g}"

    if low < 0 < value and not share:
        spread = f" (uncertain: up to {number(high)}, and 0 is not excluded)"
    elif math.isnan(low):  # a choice, or a single value, has no interval
        spread = ""
    else:
        spread = f" ({number(low)} or more)" if math.isinf(high) else f" ({number(low)} to {number(high)})"
    return f"{number(value)} {unit}{spread}, {count}"
