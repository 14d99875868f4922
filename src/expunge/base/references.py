"""Sources: `references.bib` holds each source once, and a part names its sources by key (`cite = "schoepf2025rem"`).

Each entry of the file has one line per field, and an empty line separates entries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from expunge.base.errors import SpecError, unknown

FILE = Path(__file__).resolve().parent.parent / "references.bib"
_ENTRY = re.compile(r"@\w+\{([\w-]+),\n(?:  \w+ = \{.+\},\n)+\}")


def bibtex(cite: str | Sequence[str], *, where: str) -> list[str]:
    """The BibTeX entries of a part.

    Args:
        cite: The part's `cite`: a key, a sequence of keys, or the empty string. A part of another package may give the
            BibTeX text itself, which begins with `@`.
        where: The part, for messages.

    Returns:
        One text per entry, in the order of the keys; empty if the part has no source.

    Raises:
        SpecError: No entry has that key.
    """
    keys = [cite] if isinstance(cite, str) else cite
    return [key if key.startswith("@") else _entry(key, where) for key in keys if key]


def _entry(key: str, where: str) -> str:
    entries = references()
    if key not in entries:
        raise unknown("reference", key, entries, where=f"{where}.cite")
    return entries[key]


@cache
def references() -> dict[str, str]:
    """Every entry of `references.bib` by its key, as text."""
    return parse(FILE.read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, str]:
    """Entries of BibTeX in the form of `references.bib` by their keys.

    Raises:
        SpecError: An entry has another form, its braces do not match, or its key occurs twice.
    """
    entries: dict[str, str] = {}
    for block in re.split(r"\n{2,}", text.strip()):
        match = _ENTRY.fullmatch(block)
        first = block.partition("\n")[0]
        if match is None or block.count("{") != block.count("}"):
            allowed = "a line `@type{key,`, lines `  field = {value},`, a line `}`"
            raise SpecError(f"cannot read the entry {first!r}", where=FILE.name, allowed=allowed)
        if match[1] in entries:
            raise SpecError(f"key {match[1]!r} occurs twice", where=FILE.name, allowed="each source once")
        entries[match[1]] = block
    return entries
