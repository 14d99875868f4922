"""What a notebook's call names and hands over, checked as a spec is before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.spec import Entry


def parts_of(kind: str, wanted: Sequence[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Parts by label, from names or from tables as in a spec.

    Args:
        kind: Kind of part.
        wanted: Names or tables, in the order in which they run.

    Returns:
        Parts by label.

    Raises:
        SpecError: No list, an item without a name, two of one label, an unknown name or setting.
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
        if label in parts:
            remedy = f'give one of them a label of its own: {{"name": {name!r}, "label": ...}}'
            raise SpecError(f"{label!r} is there twice", where=where, remedy=remedy.replace("'", '"'))
        parts[label] = registry.build(kind, name, table, where=where)
    return parts


def entries_of(wanted: Sequence[str | Mapping[str, Any]]) -> tuple[Entry, ...]:
    """Name and label of each part that `parts_of` made."""
    tables = [{"name": item} if isinstance(item, str) else item for item in wanted]
    return tuple(Entry(table["name"], table.get("label", table["name"])) for table in tables)


def expect(value: Any, wanted: type, where: str, allowed: str) -> None:
    """Refuse an argument of another type, as where two are swapped.

    Raises:
        SpecError: It is not of the wanted type.
    """
    if not isinstance(value, wanted):
        raise SpecError(f"found {type(value).__name__}", where=where, allowed=allowed)


def _table(item: Any, where: str) -> dict[str, Any]:
    """A table of its own with a name and, at most, a label that are words."""
    if not isinstance(item, str | Mapping):
        raise SpecError(f"found {item!r}", where=where, allowed='a name, or a table as {"name": ...}')
    table = {"name": item} if isinstance(item, str) else dict(item)
    if "name" not in table:
        raise SpecError("'name' is missing", where=where, remedy='say which: {"name": ...}')
    for key in ("name", "label"):
        expect(table.get(key, ""), str, f"{where}.{key}", "a name")
    return table
