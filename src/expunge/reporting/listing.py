"""What there is, as lines; imports nothing heavy, since `expunge list` must answer at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def listing(parts: Sequence[dict[str, str]], *, whole: bool) -> str:
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
        told = [f"{key}: {part[key]}" for key in ("paper", "needs", "cost") if part[key]] if whole else []
        lines += [f"  {'':{width}}    {line}" for line in told]
    return "\n".join(lines)


def estimates(several: Mapping[str, Mapping[str, Any]]) -> str:
    """Estimates, one a line with its 90 % interval; numbers that are not finite are spelled out already."""
    width = max(map(len, several))

    def shown(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        # Rates per step are small, and not 0.
        return f"{value:.3f}" if value == 0 or not abs(value) < 1e-3 else f"{value:.2g}"

    return "\n".join(
        f"  {name:{width}}  {shown(e['value'])} [{shown(e['low'])}, {shown(e['high'])}] {e['unit']}, n = {e['n']}"
        for name, e in several.items()
    )
