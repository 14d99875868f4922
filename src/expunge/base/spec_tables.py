"""Tables of a spec that name parts: their labels, the keys beside a part's settings, and how they refer to others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from expunge.base.errors import SpecError, unknown
from expunge.base.part import Count
from expunge.base.registry import names
from expunge.base.user_code import names_code

RESERVED = ("original", "reference")
"""Model names in results; no method may have one as its label."""
AUDITED = "audited-"
"""What stands before the name of a file that would be reserved."""
MOST = 500
"""Seeds, and tables of one kind: a run has a stage for every combination of them."""
LONGEST = {"name": 100, "label": 60}
"""Letters; a file name may have 255 bytes, and it holds the labels of a method, an attack and an audit."""
VERDICTS = ("dormant", "incomplete", "damaged", "over-forgotten", "erased", "inconclusive")


@dataclass(frozen=True)
class Entry:
    """A table that names a part: its name, its label in results, and its settings."""

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    """Methods only: upper bound on the cost, in per-example gradients."""
    required: bool = False
    """Audits only: whether the verdict `erased` depends on it."""
    adapter: Mapping[str, Any] | None = None
    """Methods and attacks only: settings of the adapter that is trained instead of the weights (`core/adapter.py`)."""
    after: str | None = None
    """Methods only: label of the method whose model it starts from; by default it starts from the original."""
    at: tuple[str, ...] = ()
    """Blocks only: patterns of module paths; the block is inserted behind each module that matches."""


@dataclass(frozen=True)
class Gate:
    """A condition on the run: this method must get this verdict."""

    method: str
    verdict: str


PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z"
Name = Annotated[str, msgspec.Meta(pattern=PATTERN, max_length=LONGEST["name"])]
Label = Annotated[str, msgspec.Meta(pattern=PATTERN, max_length=LONGEST["label"])]
LETTERS, FLAG, ONE = "letters, digits, '.', '_' and '-', at most {}", "true or false", "a whole number of at least 1"
PATHS = 'paths of modules or patterns of them: "layers.*.relu"'
BESIDE: dict[str, tuple[Any, str]] = {
    "label": (Label, LETTERS.format(LONGEST["label"])),
    "budget": (Count, ONE),
    "required": (bool, FLAG),
    "after": (str, "the label of a method"),
    "adapter": (dict[str, Any], "a table with rank, alpha and targets; an empty one has the defaults"),
    "at": (str | tuple[str, ...], PATHS),
}
"""Keys beside a part's settings: their types, and what is allowed in words."""


def label_of(name: str) -> str:
    """A file's name as the label of a model: letters that a label cannot have become `-`, and a label is not too long.

    A model is never labelled as the original or the reference, because these are judged by nobody.
    """
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[: LONGEST["label"] - len(AUDITED)].rstrip("-._")
    return f"{AUDITED}{label}" if label in (*RESERVED, "") else label


def entries_of(table: Mapping[str, Any], key: str, extra: tuple[str, ...] = ()) -> tuple[Entry, ...]:
    """The tables of one kind, such as all methods; their labels differ."""
    tables = converted(table.get(key, []), key, list, f"a list of tables, written [[{key}]]")
    if len(tables) > MOST:
        raise SpecError(f"found {len(tables)} tables", where=key, allowed=f"at most {MOST}")
    entries = tuple(entry_of(item, f"{key}[{i}]", extra=("label", *extra)) for i, item in enumerate(tables))
    labels = [entry.label for entry in entries]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise SpecError(
                f"{label!r} occurs twice", where=f"{key}[{i}]", remedy="give one of them a label of its own: label ="
            )
        if label in RESERVED:
            raise SpecError(f"the label {label!r} is reserved", where=f"{key}[{i}].label", remedy="choose another")
    return entries


def entry_of(value: Any, where: str, extra: tuple[str, ...] = ()) -> Entry:
    """One table with a name; the keys in `extra` are no settings of the part."""
    table = converted(value, where, dict[str, Any], "a table with a name")
    if "name" not in table:
        raise SpecError("'name' is missing", where=where, remedy="add name = ...")
    name = converted(table.pop("name"), f"{where}.name", str, "a name")
    if "at" in extra and not table.get("at"):
        raise SpecError("'at' is missing", where=where, allowed=PATHS, remedy="say behind which modules to put it")
    given = {key: converted(table.pop(key), f"{where}.{key}", *BESIDE[key]) for key in extra if key in table}
    if "after" in given:
        given["after"] = given["after"].replace(":", ".")
    if isinstance(given.get("at"), str):
        given["at"] = (given["at"],)
    label = given.pop("label", None)
    if label is None and names_code(name):
        # Without a label, the name is part of file names.
        label = converted(name.replace(":", "."), f"{where}.name", *BESIDE["label"])
    return Entry(name, label or name, table, **given)


def blocks_of(value: Any) -> tuple[Entry, ...]:
    """The tables `[[model.block]]`, each with the modules behind which the block is put."""
    tables = converted(value, "model.block", list, "a list of tables, written [[model.block]]")
    return tuple(entry_of(item, f"model.block[{i}]", extra=("at",)) for i, item in enumerate(tables))


def check_chains(methods: tuple[Entry, ...]) -> None:
    """Refuse methods that start from a method that does not exist, or from themselves."""
    after = {entry.label: entry.after for entry in methods}
    for i, before in enumerate(after.values()):
        if before is not None and before not in after:
            raise _no_method(before, methods, f"method[{i}].after")
    for i, label in enumerate(after):
        walked, before = [label], after[label]
        # The walk also ends in a circle that `label` is not part of; that circle is reported at one of its own methods.
        while before is not None and before not in walked:
            walked, before = [*walked, before], after[before]
        if before == label:
            circle = " after ".join([*walked, label])
            remedy = "leave out one 'after', so that a method starts from the original"
            raise SpecError(f"methods form a circle: {circle}", where=f"method[{i}].after", remedy=remedy)


def _no_method(label: str, methods: tuple[Entry, ...], where: str) -> SpecError:
    # If a method's own name is misspelt, report that name, not the place that repeats it as a label.
    for i, entry in enumerate(methods):
        if ":" not in entry.name and entry.name not in names("method"):
            return unknown("method", entry.name, names("method"), where=f"method[{i}].name")
    return unknown("method", label, [entry.label for entry in methods], where=where)


def gates_of(table: Mapping[str, Any], methods: tuple[Entry, ...]) -> tuple[Gate, ...]:
    """The tables `[[gate]]`; their methods and verdicts exist."""
    gates, labels = [], [entry.label for entry in methods]
    for i, item in enumerate(converted(table.get("gate", []), "gate", list, "a list of tables, written [[gate]]")):
        where = f"gate[{i}]"
        for key in converted(item, where, dict, "a table with method and verdict"):
            if key not in ("method", "verdict"):
                raise unknown("key", key, ("method", "verdict"), where=where)
        for key, options in (("method", labels), ("verdict", VERDICTS)):
            if key not in item:
                raise SpecError(f"{key!r} is missing", where=where, allowed=", ".join(options) or "none")
            if item[key] not in options and key == "method":
                raise _no_method(str(item[key]), methods, f"{where}.{key}")
            if item[key] not in options:
                raise unknown(key, str(item[key]), options, where=f"{where}.{key}")
        gates.append(Gate(item["method"], item["verdict"]))
    return tuple(gates)


def converted(value: Any, where: str, kind: Any, allowed: str) -> Any:
    """The value as msgspec checks it for a type; of a list, the error names the element."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # msgspec writes the place of an element behind the reason: at `$[1]`.
        inside = re.search(r"`\$((?:\[\d+\])+)`$", str(error))
        for position in re.findall(r"\d+", inside[1]) if inside else ():
            value = value[int(position)]
        place = where + (inside[1] if inside else "")
        raise SpecError(f"found {value!r}", where=place, allowed=allowed) from None
