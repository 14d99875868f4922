"""The record of a run as a type: the content of `manifest.json`, which only this module reads and writes. No torch.

Records of older formats are converted when they are read, so that no other module has to know about formats.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from expunge.base.errors import RunError, SpecError
from expunge.base.reading import RERUN, read_inside
from expunge.base.record import write_file
from expunge.base.terminal import one_line

FORMAT = 3
FORMATS = (1, 2, 3)
"""Formats that can be read; new records have the last one."""
RULES = 3
"""Version of the rules by which rows and verdicts follow from scores. Records of older formats followed rules 1. Since
rules 3 a verdict says what became of each attack, and `erased` needs that no optional audit shows the opposite."""
NAME = "manifest.json"
SPEC, ENVIRONMENT, DIAGNOSIS = "spec.json", "env.json", "diagnosis.json"
ROWS, VERDICTS = "results.jsonl", "verdicts.json"
LARGEST = 10**6
"""Number of combinations of models, seeds and attacks above which a record is not read."""
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
    kept: str = ""
    """For a method that changed only the upper half of the original: the last layer below its first change."""
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

    def file(self, folder: str) -> FileRecord | None:
        """The first stage's file in a folder of the record, none if there is no such file."""
        return next((stage.files[folder] for stage in self.stages if folder in stage.files), None)


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
    if not os.path.lexists(path):
        if os.path.lexists(folder / SPEC):
            raise SpecError(f"the run has not finished: there is no {NAME}", where=str(folder), remedy=RERUN)
        raise SpecError(
            "it holds no run", where=str(folder), allowed="a folder that 'expunge run' wrote, such as runs/<name>"
        )
    table = read_json(folder, NAME)
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
    for label in (*manifest.models, *manifest.attacks, *(stage.part for stage in manifest.stages)):
        if one_line(label) != label:
            raise RunError(f"found the label {label!r}", where=str(path), allowed="visible characters", remedy=RERUN)
    _check_stages(manifest, path)
    combinations = len(manifest.models) * len(manifest.seeds) * (1 + len(manifest.attacks))
    if combinations > LARGEST:
        finding = f"it names {combinations} combinations of models, seeds and attacks"
        raise RunError(finding, where=str(path), allowed=f"at most {LARGEST}", remedy=RERUN)
    stages = tuple(msgspec.structs.replace(s, kind=_FORMAT_1_NAMES.get(s.kind, s.kind)) for s in manifest.stages)
    return msgspec.structs.replace(manifest, stages=stages) if manifest.format == 1 else manifest


def _check_stages(manifest: Manifest, path: Path) -> None:
    """Refuse stages of other seeds or attacks than the run has, and models without a stage."""
    seeds, attacks = {*manifest.seeds, None}, {*manifest.attacks, None}
    for i, stage in enumerate(manifest.stages):
        if stage.seed not in seeds or stage.attack not in attacks:
            finding = f"found a stage of seed {stage.seed} and attack {stage.attack!r}"
            raise RunError(finding, where=f"{path} stages[{i}]", allowed="seeds and attacks of the run", remedy=RERUN)
    idle = [model for model in manifest.models if model not in {stage.model for stage in manifest.stages}]
    if idle:
        raise RunError(f"no stage is about the model {idle[0]!r}", where=str(path), allowed="its models", remedy=RERUN)


def read_spec(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The spec as it was run; keys of format 1 are renamed to today's.

    Raises:
        RunError: The file is missing or damaged.
    """
    return _current(_table(folder, SPEC, manifest), manifest)


def read_environment(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Versions and machine of the run.

    Raises:
        RunError: The file is missing, changed or damaged.
    """
    return _table(folder, ENVIRONMENT, manifest)


def read_text(folder: Path, name: str, manifest: Manifest) -> str:
    """The content of a file at the top of the folder, as text.

    Raises:
        RunError: The file is missing, changed or damaged, or the manifest has no digest of it.
    """
    digest = manifest.files.get(name)
    if digest is None and not (manifest.format == 1 and name in (SPEC, ENVIRONMENT)):
        raise RunError(f"it has no digest of {name}", where=str(folder / NAME), remedy=RERUN)
    try:
        return read_inside(folder, name, digest).decode()
    except UnicodeDecodeError as error:
        raise _damaged(folder / name, error) from None


def _table(folder: Path, name: str, manifest: Manifest) -> dict[str, Any]:
    table = parsed(read_text(folder, name, manifest), folder / name)
    if not isinstance(table, dict):
        raise RunError(f"found {type(table).__name__}", where=str(folder / name), allowed="a table", remedy=RERUN)
    return table


def read_diagnosis(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The result of each diagnostic, see `pipeline.diagnosis`; empty if none ran.

    Raises:
        RunError: The file is missing or damaged.
    """
    known = DIAGNOSIS in manifest.files
    entries = parsed(read_text(folder, DIAGNOSIS, manifest), folder / DIAGNOSIS) if known else []
    renamed = (_current(entry, manifest) for entry in entries)
    return [{**entry, "rows": [_current(row, manifest) for row in entry["rows"]]} for entry in renamed]


def _current(table: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    names = _FORMAT_1_NAMES if manifest.format == 1 else {}
    return {names.get(key, key): value for key, value in table.items()}


def read_json(folder: Path, name: str, sha256: str | None = None) -> Any:
    """The content of a JSON file of the record, whose digest is checked if it is given.

    Raises:
        RunError: The file is missing, changed or damaged.
    """
    return parsed(read_inside(folder, name, sha256), folder / name)


def parsed(content: bytes | str, path: Path) -> Any:
    """JSON as plain data; `path` is for messages.

    Raises:
        RunError: It is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"the file is damaged ({error})", where=str(path), remedy=RERUN)
