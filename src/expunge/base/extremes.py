"""Refuses plain data that no setting can mean: numbers beyond 64 bits, deep nesting, invisible zero bytes.

TOML asks for 64-bit integers. Python reads larger ones, and they fail much later: in NumPy, in torch, or where a
message should show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.base.errors import SpecError

DEEPEST = 32
"""Levels of tables and lists in a spec."""
SMALLEST, LARGEST = -(2**63), 2**63 - 1


def refuse_extremes(value: Any, where: str) -> None:
    """Refuse numbers beyond 64 bits, strings with a zero byte, and nesting of more than `DEEPEST` levels.

    Args:
        value: Plain data; anything else in it is left alone.
        where: Its place, for messages.

    Raises:
        SpecError: The message names the place inside the value.
    """
    waiting: list[tuple[Any, str, int]] = [(value, where, 0)]
    while waiting:
        item, place, depth = waiting.pop()
        if depth > DEEPEST:
            raise SpecError("it is nested too deeply", where=place[:80], allowed=f"{DEEPEST} levels")
        if isinstance(item, Mapping):
            waiting += [(name, place, depth) for name in item if isinstance(name, str)]
            waiting += [(inner, f"{place}.{name}".lstrip("."), depth + 1) for name, inner in item.items()]
        elif isinstance(item, list | tuple):
            waiting += [(inner, f"{place}[{i}]", depth + 1) for i, inner in enumerate(item)]
        elif isinstance(item, str) and "\0" in item:
            raise SpecError(f"found {item!r}", where=place, allowed="a text without zero bytes")
        elif type(item) is int and not SMALLEST <= item <= LARGEST:
            finding = f"found a whole number of {item.bit_length()} bits"
            raise SpecError(finding, where=place, allowed="whole numbers of 64 bits")
