"""Checks a record: first the digests of its files, then every row and verdict, recomputed from the scores. No torch.

The rows and verdicts of a run follow from its score files alone. So they can be checked on any machine, without the
models, the data or the code that trained them.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError, SpecError
from expunge.base.manifest import (
    ROWS,
    RULES,
    VERDICTS,
    Manifest,
    parsed,
    read_environment,
    read_manifest,
    read_spec,
    read_text,
)
from expunge.base.reading import RERUN, consistent, path_inside
from expunge.base.record import rows_to_text
from expunge.evidence.table import Table, read_table, verdicts_text


def verify(folder: Path) -> dict[str, int]:
    """Check a finished run.

    Args:
        folder: The run's folder, `runs/<name>`.

    Returns:
        The numbers of digests, rows and verdicts that were checked; all of them agree. Verdicts of a record that was
        made under older rules are not checked.

    Raises:
        SpecError: The folder holds no run, or one that has not finished.
        RunError: Something disagrees. The message names the first file, row or verdict that does.
    """
    manifest = read_manifest(folder)
    digests = list(manifest.digests())
    for name, expected in digests:
        path_inside(folder, name, expected)
    for read in (read_spec, read_environment):
        read(folder, manifest)
    table, verdicts = judged(folder, manifest)
    checked = {"digests": len(digests), "rows": len(table.rows())}
    return checked if manifest.rules != RULES else {**checked, "verdicts": len(verdicts)}


def judged(folder: Path, manifest: Manifest) -> tuple[Table, list[dict[str, Any]]]:
    """The scores of a finished run, and the verdicts that follow from them.

    Rows and verdicts that are written in the folder are only compared with these, and never believed.

    Args:
        folder: The run's folder.
        manifest: Its manifest.

    Returns:
        The table; the verdicts as plain data, as `verdicts.json` holds them.

    Raises:
        RunError: A file of scores, rows or verdicts is missing, changed or damaged; or a row or a verdict is not the
            one that the scores give.
    """
    with consistent(folder):
        table, rows, verdicts = _recomputed(folder, manifest)
        if manifest.rules != RULES:
            _check_values(folder, manifest, rows)
            return table, verdicts
        _check_rows(folder, manifest, rows)
        _check_verdicts(folder, manifest, verdicts)
    return table, verdicts


def _recomputed(folder: Path, manifest: Manifest) -> tuple[Table, str, list[dict[str, Any]]]:
    try:
        table = read_table(folder, manifest)
        return table, rows_to_text(table.rows()), json.loads(verdicts_text(table))
    except SpecError as error:
        # What would be a mistake in a spec can only be damage in a record.
        where = f"{folder}: {error.where}".removesuffix(": ")
        raise RunError(error.finding, where=where, allowed=error.allowed, remedy=RERUN) from None


def _check_rows(folder: Path, manifest: Manifest, recomputed: str) -> None:
    path = folder / ROWS
    stored, expected = read_text(folder, ROWS, manifest).splitlines(), recomputed.splitlines()
    for number, (old, new) in enumerate(zip(stored, expected, strict=False), start=1):
        if old != new:
            raise RunError(f"found {old}", where=f"{path}:{number}", allowed=new, remedy=_hint(folder, manifest))
    if len(stored) != len(expected):
        allowed = f"the {len(expected)} that the scores give"
        raise RunError(f"found {len(stored)} rows", where=str(path), allowed=allowed)


def _check_values(folder: Path, manifest: Manifest, recomputed: str) -> None:
    """Check rows that were made under older rules: values and gaps must agree, intervals need not."""
    path = folder / ROWS
    stored, expected = (
        [_value(parsed(line, path)) for line in text.splitlines()]
        for text in (read_text(folder, ROWS, manifest), recomputed)
    )
    for number, (old, new) in enumerate(zip(stored, expected, strict=False), start=1):
        if old != new:
            raise RunError(f"found {old}", where=f"{path}:{number}", allowed=str(new), remedy=_hint(folder, manifest))
    if len(stored) != len(expected):
        allowed = f"the {len(expected)} that the scores give"
        raise RunError(f"found {len(stored)} rows", where=str(path), allowed=allowed)


def _value(row: Any) -> Any:
    return {key: value for key, value in row.items() if key not in ("low", "high")} if isinstance(row, dict) else row


def _check_verdicts(folder: Path, manifest: Manifest, recomputed: list[dict[str, Any]]) -> None:
    path = folder / VERDICTS
    written = parsed(read_text(folder, VERDICTS, manifest), path)
    if not isinstance(written, list) or not all(isinstance(verdict, dict) for verdict in written):
        raise RunError("this is no list of verdicts", where=str(path), remedy=RERUN)
    # A newer version may word the reasons differently, but all else must agree.
    stored, expected = ([_without_words(verdict) for verdict in table] for table in (written, recomputed))
    for number, (old, new) in enumerate(zip(stored, expected, strict=False)):
        if old != new:
            place, value, wanted = _first_difference(old, new)
            finding = f"the verdict about {new['model']!r} has {value!r}"
            where = f"{path}[{number}]{place}"
            raise RunError(finding, where=where, allowed=repr(wanted), remedy=_hint(folder, manifest))
    if len(stored) != len(expected):
        finding = f"found {len(stored)} verdicts"
        raise RunError(finding, where=str(path), allowed=f"the {len(expected)} that the scores give")


def _without_words(verdict: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in verdict.items() if key != "reasons"}


def _first_difference(old: Any, new: Any) -> tuple[str, Any, Any]:
    """The place where two pieces of plain data first differ, and both values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f".{key}", old.get(key), new.get(key)) for key in {**new, **old}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return "", old, new
    step, a, b = next((step, a, b) for step, a, b in pairs if a != b)
    place, value, wanted = _first_difference(a, b)
    return step + place, value, wanted


def _hint(folder: Path, manifest: Manifest) -> str:
    """A note if versions differ from the recorded ones: other versions may round the last digits differently."""
    recorded = read_environment(folder, manifest).get("packages", {})
    changed = [
        f"{name} {recorded[name]} recorded, {version(name)} here"
        for name in ("expunge", "numpy", "scipy")
        if name in recorded and recorded[name] != version(name)
    ]
    return f"note that the versions differ: {'; '.join(changed)}" if changed else ""
