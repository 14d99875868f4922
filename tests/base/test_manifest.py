"""The record as a type: what is written is read back, and what does not belong is refused by path and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.base.errors import RunError
from expunge.base.manifest import FileRecord, Manifest, StageRecord, read_manifest, write_manifest


def manifest() -> Manifest:
    stage = StageRecord(
        kind="audit",
        model="original",
        seed=0,
        attack=None,
        part="accuracy",
        key="ab",
        gradients=None,
        seconds=0.5,
        files={"scores": FileRecord("scores/a.safetensors", "00")},
    )
    return Manifest(
        models=("original",),
        seeds=(0,),
        attacks=(),
        required=("accuracy",),
        about_one_model=False,
        versions={"audit": {"accuracy": 1}},
        stages=(stage,),
        files={"spec.json": "11", "results.jsonl": "22"},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()
    assert json.loads((tmp_path / "manifest.json").read_text())["format"] == 3
    assert dict(manifest().digests()) == {"scores/a.safetensors": "00", "spec.json": "11", "results.jsonl": "22"}
    assert manifest().results == {"results.jsonl": "22"}


def edited(folder: Path, table: dict[str, Any]) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("key", ["models", "versions", "stages.seconds"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    write_manifest(tmp_path, manifest())
    table = json.loads((tmp_path / "manifest.json").read_text())
    *outer, name = key.split(".")
    del (table["stages"][0] if outer else table)[name]
    path = edited(tmp_path, table)
    with pytest.raises(RunError, match=rf"{path}.*`{name}`"):
        read_manifest(tmp_path)


def test_an_unknown_key_is_refused_with_its_place(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    table = json.loads((tmp_path / "manifest.json").read_text())
    table["stages"][0]["files"]["scores"]["size"] = 3
    path = edited(tmp_path, table)
    with pytest.raises(RunError, match=rf"{path} stages\[0\]\.files.*unknown field `size`"):
        read_manifest(tmp_path)


def test_a_missing_key_of_format_1_has_its_name_of_then(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    table = json.loads((tmp_path / "manifest.json").read_text()) | {"format": 1}
    path = edited(tmp_path, table)
    with pytest.raises(RunError, match=rf"{path}.*unknown field `files`"):
        read_manifest(tmp_path)
