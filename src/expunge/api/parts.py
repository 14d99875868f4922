"""Check the arguments of a notebook's call, as a spec is checked, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.spec_tables import Entry

ADAPTER = "a table with rank, alpha and targets; an empty one has the defaults"


def parts_of(kind: str, wanted: Sequence[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Make parts from names, or from tables as in a spec.

    Args:
        kind: Kind of part.
        wanted: Names or tables, in the order in which they run.

    Returns:
        Parts by label.

    Raises:
        SpecError: `wanted` is not a list, an item has no name, two items have the same label, or a name or setting is
            unknown.
    """
    argument = registry.FOLDERS[kind]
    if isinstance(wanted, str | Mapping) or not isinstance(wanted, Sequence):
        raise SpecError(
            f"found {wanted!r}", where=argument, allowed="a list of names or tables", remedy=f"write {argument}=[...]"
        )
    parts: dict[str, Any] = {}
    for i, item in enumerate(wanted):
        where = f"{argument}[{i}]"
        table = _table(item, where)
        name = table.pop("name")
        label = table.pop("label", name)
        if kind == "attack":
            expect(table.pop("adapter", {}), Mapping, f"{where}.adapter", ADAPTER)
        if label in parts:
            remedy = f'give one of them another label: {{"name": {name!r}, "label": ...}}'
            raise SpecError(f"{label!r} is there twice", where=where, remedy=remedy.replace("'", '"'))
        parts[label] = registry.build(kind, name, table, where=where)
    return parts


def entries_of(wanted: Sequence[str | Mapping[str, Any]]) -> tuple[Entry, ...]:
    """Name and label of each part that `parts_of` made."""
    tables: list[Mapping[str, Any]] = [{"name": item} if isinstance(item, str) else item for item in wanted]
    return tuple(
        Entry(table["name"], table.get("label", table["name"]), adapter=table.get("adapter")) for table in tables
    )


def expect(value: Any, wanted: type, where: str, allowed: str) -> None:
    """Refuse an argument of another type, for example if two arguments are swapped.

    Raises:
        SpecError: The value does not have the wanted type.
    """
    if not isinstance(value, wanted):
        raise SpecError(f"found {type(value).__name__}", where=where, allowed=allowed)


def _table(item: Any, where: str) -> dict[str, Any]:
    """A copy of the item as a table; its name, and its label if it has one, are strings."""
    if not isinstance(item, str | Mapping):
        raise SpecError(f"found {item!r}", where=where, allowed='a name, or a table as {"name": ...}')
    table = {"name": item} if isinstance(item, str) else dict(item)
    if "name" not in table:
        raise SpecError("'name' is missing", where=where, remedy='add it: {"name": ...}')
    for key in ("name", "label"):
        expect(table.get(key, ""), str, f"{where}.{key}", "a name")
    return table
