"""Rows of a text file: a JSON list, or JSON Lines; the content decides which, not the name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.base.errors import SpecError
from expunge.base.reading import read_given

ALLOWED = "JSON Lines (one JSON object per line), or one JSON list of objects"
PICKLES = (b"\x80", b"PK\x03\x04")
"""First bytes of a pickle, and of the zip that torch.save writes."""


def rows_of_file(path: Path, *, where: str) -> list[tuple[str, Any]]:
    """The rows of a file, each with its place for messages, such as `people.jsonl, line 3`.

    Args:
        path: The user's file.
        where: Place of the path in the spec, for messages.

    Raises:
        SpecError: The file cannot be read, is no text, is empty, or has a line that is empty or no JSON.
    """
    text = _decoded(read_given(path, where=where), path, where)
    if not text.strip():
        raise SpecError(f"{path} is empty", where=where, allowed=ALLOWED)
    whole = _list(text) if text.lstrip().startswith("[") else None
    if whole is not None:
        return [(f"{path.name}, item {i}", row) for i, row in enumerate(whole, 1)]
    # Not `splitlines`, which also cuts at line separators that stand inside JSON strings.
    lines = text.removesuffix("\n").split("\n")
    places = [f"{path.name}, line {i}" for i in range(1, len(lines) + 1)]
    return [(place, _row(line, place, where)) for place, line in zip(places, lines, strict=True)]


def _decoded(content: bytes, path: Path, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        pickled = content.startswith(PICKLES)
        finding = "is a pickle, which can run code when it is read" if pickled else f"is not UTF-8 ({error.reason})"
        raise SpecError(f"{path} {finding}", where=where, allowed=ALLOWED) from None


def _list(text: str) -> list[Any] | None:
    """The file as one list; `None` if it is something else, such as a list in each line."""
    try:
        rows: list[Any] = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return rows


def _row(line: str, place: str, where: str) -> Any:
    if not line.strip():
        raise SpecError(f"{place} is empty", where=where, allowed=ALLOWED, remedy="remove the line")
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        finding = f"{place} is no JSON ({error.msg} at letter {error.colno})"
    except (ValueError, RecursionError) as error:
        finding = f"{place} is no JSON that can be read ({type(error).__name__})"
    raise SpecError(finding, where=where, allowed=ALLOWED)
