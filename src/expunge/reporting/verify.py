"""Does a record still say what its scores say? Digests first, then every row and verdict made anew; needs no torch.

The rows and verdicts of a run follow from its score files alone, so anybody can check them on any machine, without the
models, the data or the code that trained them.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError
from expunge.base.manifest import ENVIRONMENT, RERUN, Manifest, read_json, read_manifest
from expunge.base.record import file_digest, rows_to_text
from expunge.evidence.table import Table, read_table, verdicts_text


def verify(folder: Path) -> dict[str, int]:
    """Check a finished run.

    Args:
        folder: The run's folder, `runs/<name>`.

    Returns:
        How many digests, rows and verdicts were checked and agree.

    Raises:
        SpecError: The folder holds no run, or one that has not finished.
        RunError: Something disagrees; names the first file, row or verdict that does.
    """
    manifest = read_manifest(folder)
    digests = 0
    for name, expected in manifest.digests():
        _check_digest(folder / name, expected)
        digests += 1
    table = read_run(folder, manifest)
    rows, verdicts = rows_to_text(table.rows()), verdicts_text(table)
    _check_rows(folder, rows)
    _check_verdicts(folder, verdicts)
    return {"digests": digests, "rows": rows.count("\n"), "verdicts": len(json.loads(verdicts))}


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
    found = file_digest(path)
    if found != expected:
        raise RunError(f"the file was changed: its SHA-256 is {found}", where=str(path), allowed=expected)


def _check_rows(folder: Path, recomputed: str) -> None:
    path = folder / "results.jsonl"
    stored = path.read_text(encoding="utf-8").splitlines()
    made = recomputed.splitlines()
    for number, (there, here) in enumerate(zip(stored, made, strict=False), start=1):
        if there != here:
            raise RunError(f"found {there}", where=f"{path}:{number}", allowed=here, remedy=_hint(folder))
    if len(stored) != len(made):
        raise RunError(f"found {len(stored)} rows", where=str(path), allowed=f"the {len(made)} that the scores give")


def _check_verdicts(folder: Path, recomputed: str) -> None:
    path = folder / "verdicts.json"
    # A newer version may word its reasons better; flags and numbers must stay. The digest guards the stored words.
    stored, made = ([_without_words(v) for v in found] for found in (read_json(path), json.loads(recomputed)))
    for number, (there, here) in enumerate(zip(stored, made, strict=False)):
        if there != here:
            place, found, wanted = _first_difference(there, here)
            finding = f"the verdict about {here['model']!r} has {found!r}"
            where = f"{path}[{number}]{place}"
            raise RunError(finding, where=where, allowed=repr(wanted), remedy=_hint(folder))
    if len(stored) != len(made):
        finding = f"found {len(stored)} verdicts"
        raise RunError(finding, where=str(path), allowed=f"the {len(made)} that the scores give")


def _without_words(verdict: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in verdict.items() if key != "reasons"}


def _first_difference(there: Any, here: Any) -> tuple[str, Any, Any]:
    """Where two pieces of plain data first differ, and what is there in each."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = [(f".{key}", there.get(key), here.get(key)) for key in {**here, **there}]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(f"[{i}]", a, b) for i, (a, b) in enumerate(zip(there, here, strict=True))]
    else:
        return "", there, here
    step, a, b = next((step, a, b) for step, a, b in pairs if a != b)
    place, found, wanted = _first_difference(a, b)
    return step + place, found, wanted


def _hint(folder: Path) -> str:
    """Other versions round other last digits; that is worth knowing before anybody is suspected."""
    recorded = read_json(folder / ENVIRONMENT).get("packages", {})
    other = [
        f"{name} {recorded[name]} recorded, {version(name)} here"
        for name in ("expunge", "numpy", "scipy")
        if name in recorded and recorded[name] != version(name)
    ]
    return f"note that the versions differ: {'; '.join(other)}" if other else ""
