"""What there is, as lines; imports nothing heavy, since `expunge list` must answer at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

METHODS = {"name": "name", "year": "year", "paper": "paper", "needs": "needs", "effort": "cost"}
"""Fact -> heading of the table of methods."""
LEGEND = """
cost in gradients of single examples: R retain and F forget examples, B the forget examples of one
batch beside every batch of R, E epochs; `expunge show NAME` says it in full"""


def listing(parts: Sequence[Mapping[str, Any]], *, whole: bool) -> str:
    """Registered parts, one a line, for `expunge list`.

    Args:
        parts: What `registry.facts` says of each.
        whole: Below each its paper, needs and cost, where its file says them.

    Returns:
        Lines, indented by two.
    """
    width = max(len(part["name"]) for part in parts)
    lines = []
    for part in parts:
        lines.append(f"  {part['name']:{width}}  {part['summary']}")
        facts = dict(part, paper=paper_of(part))
        told = [f"{key}: {facts[key]}" for key in ("paper", "needs", "cost") if facts[key]] if whole else []
        lines += [f"  {'':{width}}    {line}" for line in told]
    return "\n".join(lines)


def methods_table(parts: Sequence[Mapping[str, Any]]) -> str:
    """Methods in aligned columns, for `expunge list methods`.

    Args:
        parts: What `registry.facts` says of each.

    Returns:
        A line of headings, one per method, indented by two, and what the letters mean.
    """
    rows = [list(METHODS.values()), *([str(part[fact] or "") for fact in METHODS] for part in parts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"  {line}".rstrip() for line in lines) + "\n" + LEGEND


def paper_of(part: Mapping[str, Any]) -> str:
    """A part's paper with its year; empty where its file names none."""
    return ", ".join(str(part[key]) for key in ("paper", "year") if part[key])


def estimates(several: Mapping[str, Mapping[str, Any]]) -> str:
    """Estimates, one a line with its 90 % interval; numbers that are not finite are spelled out already."""
    width = max(map(len, several))

    def shown(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        # Rates per step are small, and not 0.
        return f"{value:.3f}" if value == 0 or not abs(value) < 1e-3 else f"{value:.2g}"

    def between(low: str, high: str) -> str:
        # A choice, or what one value alone says, has no interval.
        return "" if low == high == "nan" else f" [{low}, {high}]"

    return "\n".join(
        f"  {name:{width}}  {shown(e['value'])}{between(shown(e['low']), shown(e['high']))} {e['unit']}, n = {e['n']}"
        for name, e in several.items()
    )
