"""Checks a record: first the digests of its files, then every row and verdict, recomputed from the scores. No torch.

The rows and verdicts of a run follow from its score files alone. So they can be checked on any machine, without the
models, the data or the code that trained them.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError
from expunge.base.manifest import ENVIRONMENT, RERUN, RULES, Manifest, read_json, read_manifest
from expunge.base.record import file_digest, rows_to_text
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
    digests = 0
    for name, expected in manifest.digests():
        _check_digest(folder / name, expected)
        digests += 1
    table = read_run(folder, manifest)
    rows, verdicts = rows_to_text(table.rows()), verdicts_text(table)
    checked = {"digests": digests, "rows": rows.count("\n")}
    if manifest.rules != RULES:
        _check_values(folder, rows)
        return checked
    _check_rows(folder, rows)
    _check_verdicts(folder, verdicts)
    return {**checked, "verdicts": len(json.loads(verdicts))}


def read_run(folder: Path, manifest: Manifest) -> Table:
    """The table of a finished run.

    Raises:
        RunError: A score file is missing or damaged.
    """
    try:
        return read_table(folder, manifest)
    except FileNotFoundError as error:
        raise RunError("the file is missing", where=str(error.filename), remedy=RERUN) from None


def _check_digest(path: Path, expected: str) -> None:
    if not path.is_file():
        raise RunError("the file is missing", where=str(path), remedy=RERUN)
    digest = file_digest(path)
    if digest != expected:
        raise RunError(f"the file was changed: its SHA-256 is {digest}", where=str(path), allowed=expected)


def _check_rows(folder: Path, recomputed: str) -> None:
    path = folder / "results.jsonl"
    stored = path.read_text(encoding="utf-8").splitlines()
    expected = recomputed.splitlines()
    for number, (old, new) in enumerate(zip(stored, expected, strict=False), start=1):
        if old != new:
            raise RunError(f"found {old}", where=f"{path}:{number}", allowed=new, remedy=_hint(folder))
    if len(stored) != len(expected):
        allowed = f"the {len(expected)} that the scores give"
        raise RunError(f"found {len(stored)} rows", where=str(path), allowed=allowed)


def _check_values(folder: Path, recomputed: str) -> None:
    """Check rows that were made under older rules: values and gaps must agree, intervals need not."""
    path = folder / "results.jsonl"
    stored, expected = (
        [_value(line) for line in text.splitlines()] for text in (path.read_text(encoding="utf-8"), recomputed)
    )
    for number, (old, new) in enumerate(zip(stored, expected, strict=False), start=1):
        if old != new:
            raise RunError(f"found {old}", where=f"{path}:{number}", allowed=str(new), remedy=_hint(folder))
    if len(stored) != len(expected):
        allowed = f"the {len(expected)} that the scores give"
        raise RunError(f"found {len(stored)} rows", where=str(path), allowed=allowed)


def _value(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in ("low", "high")}


def _check_verdicts(folder: Path, recomputed: str) -> None:
    path = folder / "verdicts.json"
    # A newer version may word the reasons differently, but flags and numbers must agree. The digest protects the words.
    stored, expected = ([_without_words(v) for v in table] for table in (read_json(path), json.loads(recomputed)))
    for number, (old, new) in enumerate(zip(stored, expected, strict=False)):
        if old != new:
            place, value, wanted = _first_difference(old, new)
            finding = f"the verdict about {new['model']!r} has {value!r}"
            where = f"{path}[{number}]{place}"
            raise RunError(finding, where=where, allowed=repr(wanted), remedy=_hint(folder))
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


def _hint(folder: Path) -> str:
    """A note if versions differ from the recorded ones: other versions may round the last digits differently."""
    recorded = read_json(folder / ENVIRONMENT).get("packages", {})
    changed = [
        f"{name} {recorded[name]} recorded, {version(name)} here"
        for name in ("expunge", "numpy", "scipy")
        if name in recorded and recorded[name] != version(name)
    ]
    return f"note that the versions differ: {'; '.join(changed)}" if changed else ""
