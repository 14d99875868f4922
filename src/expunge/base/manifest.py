"""The record of a run as a type: the content of `manifest.json`, which only this module reads and writes. No torch.

Records of older formats are converted when they are read, so that no other module has to know about formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from expunge.base.errors import RunError, SpecError
from expunge.base.record import write_file

FORMAT = 3
FORMATS = (1, 2, 3)
"""Formats that can be read; new records have the last one."""
RULES = 2
"""Version of the rules by which rows and verdicts follow from scores. Records of older formats followed rules 1."""
NAME = "manifest.json"
SPEC, ENVIRONMENT, DIAGNOSIS = "spec.json", "env.json", "diagnosis.json"
RERUN = "run `expunge run SPEC` again, which keeps finished stages"
_FORMAT_1_NAMES = {"probe": "diagnostic", "foretells": "predicts"}
"""Key or kind in a record of format 1 -> its name today."""


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the record, by its path in the run's folder and its SHA-256."""

    path: str
    sha256: str


class StageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage of the run: its identity, its cost, and the files that the record keeps of it."""

    kind: str
    model: str
    seed: int | None
    attack: str | None
    part: str
    key: str | None
    """Content address in the cache; none in notebook records of format 1."""
    gradients: int | None
    """Per-example gradients; none if unknown."""
    seconds: float
    changed: bool | None = None
    """For a method: whether it changed any weight; none for other stages, and in records that do not say it."""
    files: dict[str, FileRecord]
    """By the folder that holds them: `scores`, `curves`, `models`, `examples` or `diagnosis`."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The index of a finished run: its models, seeds and attacks, its stages, and the digest of every file."""

    format: int = FORMAT
    models: tuple[str, ...]
    """`original`, `reference`, then the methods' labels."""
    seeds: tuple[int, ...]
    attacks: tuple[str, ...]
    required: tuple[str, ...]
    """Labels of the audits that the spec requires."""
    about_one_model: bool
    training: tuple[str, ...] | None = None
    """Labels of the attacks that train; none in records of older formats, whose attacks all count as training."""
    rules: int = 1
    """Version of the rules by which rows and verdicts were made, see `RULES`."""
    versions: dict[str, dict[str, int]]
    """Version of each part by the spec's table and the part's name; empty in old records, which did not keep it."""
    stages: tuple[StageRecord, ...]
    files: dict[str, str] = msgspec.field(default_factory=dict)
    """SHA-256 of each file in the folder itself: rows, verdicts, and from format 2 on spec and environment."""

    @property
    def results(self) -> dict[str, str]:
        """SHA-256 of the files that hold results: rows, verdicts, diagnosis."""
        return {name: digest for name, digest in self.files.items() if name not in (SPEC, ENVIRONMENT)}

    def digests(self) -> Iterator[tuple[str, str]]:
        """Path and SHA-256 of every file of the record."""
        for stage in self.stages:
            for file in stage.files.values():
                yield file.path, file.sha256
        yield from self.files.items()

    def file(self, folder: str) -> str | None:
        """Path of the first stage's file in a folder of the record, none if there is no such file."""
        return next((stage.files[folder].path for stage in self.stages if folder in stage.files), None)


class _Format1(Manifest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: int = 1
    versions: dict[str, dict[str, int]] = {}
    files: dict[str, str] = msgspec.field(name="results")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically.

    Raises:
        RunError: It could not be written.
    """
    write_file(folder / NAME, json.dumps(msgspec.to_builtins(manifest), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished run.

    Raises:
        SpecError: The folder holds no run, or one that has not finished.
        RunError: The manifest is damaged, has an unknown or a missing key, or comes from a newer format.
    """
    path = folder / NAME
    if not path.is_file():
        if (folder / SPEC).is_file():
            raise SpecError(f"the run has not finished: there is no {NAME}", where=str(folder), remedy=RERUN)
        raise SpecError(
            "it holds no run", where=str(folder), allowed="a folder that 'expunge run' wrote, such as runs/<name>"
        )
    table = read_json(path)
    if not isinstance(table, dict) or "stages" not in table:
        raise RunError("this is no manifest", where=str(path), remedy=RERUN)
    if table.get("format") not in FORMATS:
        allowed = ", ".join(map(str, FORMATS))
        raise RunError(f"found format {table.get('format')}", where=str(path), allowed=allowed, remedy="update expunge")
    kind = _Format1 if table["format"] == 1 else Manifest
    try:
        manifest = msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        finding, _, place = str(error).partition(" - at ")
        where = f"{path} {place.strip('`').removeprefix('$.')}".rstrip()
        raise RunError(finding[0].lower() + finding[1:], where=where, remedy=RERUN) from None
    stages = tuple(msgspec.structs.replace(s, kind=_FORMAT_1_NAMES.get(s.kind, s.kind)) for s in manifest.stages)
    return msgspec.structs.replace(manifest, stages=stages) if manifest.format == 1 else manifest


def read_spec(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The spec as it was run; keys of format 1 are renamed to today's.

    Raises:
        RunError: The file is missing or damaged.
    """
    return _current(read_json(folder / SPEC), manifest)


def read_diagnosis(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The result of each diagnostic, see `pipeline.diagnosis`; empty if none ran.

    Raises:
        RunError: The file is missing or damaged.
    """
    entries = read_json(folder / DIAGNOSIS) if DIAGNOSIS in manifest.files else []
    renamed = (_current(entry, manifest) for entry in entries)
    return [{**entry, "rows": [_current(row, manifest) for row in entry["rows"]]} for entry in renamed]


def _current(table: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    names = _FORMAT_1_NAMES if manifest.format == 1 else {}
    return {names.get(key, key): value for key, value in table.items()}


def read_json(path: Path) -> Any:
    """The content of a JSON file of the record.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("the file is missing", where=str(path), remedy=RERUN) from None
    except ValueError as error:
        raise RunError(f"the file is damaged ({error})", where=str(path), remedy=RERUN) from None
