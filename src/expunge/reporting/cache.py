"""What the caches of a folder for runs hold, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge.base.clean import Held


def as_json(outputs: Sequence[Held], *, removed: bool) -> dict[str, Any]:
    """Numbers and bytes of outputs, by cache and by kind of stage."""
    caches = dict.fromkeys(str(output.store.root) for output in outputs)
    kinds = dict.fromkeys(output.kind for output in outputs)
    return {
        **_counts(outputs),
        "removed": removed,
        "caches": {cache: _counts([o for o in outputs if str(o.store.root) == cache]) for cache in caches},
        "kinds": {kind: _counts([o for o in outputs if o.kind == kind]) for kind in kinds},
    }


def _counts(outputs: Sequence[Held]) -> dict[str, Any]:
    unneeded = [output for output in outputs if not output.needed]
    return {
        "outputs": len(outputs),
        "bytes": sum(output.size for output in outputs),
        "unneeded": {"outputs": len(unneeded), "bytes": sum(output.size for output in unneeded)},
    }


def as_text(counts: dict[str, Any]) -> str:
    """The table and the sentence below it."""
    rows = [("stage", "outputs", "size", "no run needs", "size")]
    rows += [_row(kind, of_kind) for kind, of_kind in counts["kinds"].items()]
    rows += [_row("all", counts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows]
    unneeded = f"{counts['unneeded']['outputs']} outputs ({size_text(counts['unneeded']['bytes'])})"
    if not counts["unneeded"]["outputs"]:
        return "\n".join([*lines, "every output is needed by a run"])
    ending = f"removed {unneeded}" if counts["removed"] else f"no run needs {unneeded}; remove them with --yes"
    return "\n".join([*lines, ending])


def _row(name: str, counts: dict[str, Any]) -> tuple[str, str, str, str, str]:
    unneeded = counts["unneeded"]
    return (
        name,
        str(counts["outputs"]),
        size_text(counts["bytes"]),
        str(unneeded["outputs"]),
        size_text(unneeded["bytes"]),
    )


def size_text(size: float) -> str:
    """A number of bytes in words: `512 B`, `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
