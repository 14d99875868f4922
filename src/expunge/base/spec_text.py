"""The text of a spec: read from a file with bounds, parsed as TOML, and changed by `--set`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from expunge.base.errors import SpecError, unknown
from expunge.base.extremes import DEEPEST

LARGEST = 2**18
"""Size in bytes above which a file is not read as a spec."""
DOTS = 200
"""Dots in a line above which a file is not read as a spec."""


def content_of(path: Path) -> str:
    """The text of a spec file.

    Raises:
        SpecError: It cannot be read, is too large, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"cannot read the spec ({reason})", where=str(path), remedy="check the path") from None
    if len(content) > LARGEST:
        raise SpecError("it is too large for a spec", where=str(path), allowed=f"at most {LARGEST} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"not valid TOML ({error})", where=str(path)) from None


def toml_of(text: str, where: str) -> dict[str, Any]:
    """The table that a text in TOML describes.

    Raises:
        SpecError: It is not valid TOML, or has extreme values on which a parser takes hours.
    """
    # The time of tomllib grows with the square of the number of words in a dotted key.
    if any(line.count(".") > DOTS for line in text.splitlines()):
        raise SpecError("a line has too many dots", where=where, allowed=f"at most {DOTS}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML ({error})", where=where) from None
    except RecursionError:
        raise SpecError("it is nested too deeply", where=where, allowed=f"{DEEPEST} levels") from None
    except ValueError:
        # Python refuses to read numbers of thousands of digits.
        raise SpecError("a whole number is too long", where=where, allowed="whole numbers of 64 bits") from None


def override(table: dict[str, Any], assignment: str) -> None:
    """Change one value of a table in place, as `--set` says: `a.b=value`.

    Raises:
        SpecError: It is no assignment, or its path does not exist.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise SpecError(f"found {assignment!r}", where="--set", allowed="a.b=value")
    try:
        value = toml_of(f"value = {text}", "--set")["value"]
    except SpecError:
        value = text
    *steps, last = path.strip().split(".")
    place: Any = table
    for step in steps:
        place = _step(place, step, assignment)
    if not isinstance(place, dict):
        raise SpecError(f"{'.'.join(steps)!r} is not a table", where=f"--set {assignment}")
    place[last] = value


def _step(place: Any, step: str, assignment: str) -> Any:
    where = f"--set {assignment}"
    if isinstance(place, dict):
        return place.setdefault(step, {})
    if not isinstance(place, list) or not all(isinstance(item, dict) for item in place):
        raise SpecError(f"there is no {step!r} in {place!r}", where=where, allowed="the path of a value in a table")
    # Labels first, then names, then positions; an entry without a label has its name as label.
    labels = [str(item.get("label", item.get("name"))) for item in place]
    for options in (labels, [str(item.get("name")) for item in place], [str(i) for i in range(len(place))]):
        if step in options:
            return place[options.index(step)]
    raise unknown("entry", step, labels, where=where)
