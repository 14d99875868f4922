"""Registered parts as lines of text; imports nothing heavy, because `expunge list` must answer at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def estimates(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Estimates by name, one a line with its 90 % interval; NaN and infinities are given as strings."""
    width = max(map(len, rows))

    def shown(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        # Rates per step are small and must not be printed as 0.
        return f"{value:.3f}" if value == 0 or not abs(value) < 1e-3 else f"{value:.2g}"

    def between(low: str, high: str) -> str:
        # A choice, or a single value, has no interval.
        return "" if low == high == "nan" else f" [{low}, {high}]"

    return "\n".join(
        f"  {name:{width}}  {shown(e['value'])}{between(shown(e['low']), shown(e['high']))} {e['unit']}, n = {e['n']}"
        for name, e in rows.items()
    )
