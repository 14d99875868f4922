"""A spec requires an audit by its label; the verdict depends on what that audit measures, whatever it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expunge.base.manifest import FileRecord, Manifest, StageRecord
from expunge.base.record import file_digest
from expunge.evidence.scores import Role, Scores, dumps
from expunge.evidence.table import read_table


def entry(root: Path, model: str, part: str, metric: str, role: Role) -> StageRecord:
    values = np.array([1.0, 0.0, 1.0])
    name = f"{model}-{part}.safetensors"
    scores = Scores(metric, "forget", values, np.arange(3), role, "share", "reference", required=metric == "accuracy")
    (root / name).write_bytes(dumps([scores]))
    files = {"scores": FileRecord(name, file_digest(root / name))}
    facts = {"model": model, "seed": 0, "attack": None, "part": part, "key": None, "gradients": 0, "seconds": 0.0}
    return StageRecord(kind="audit", files=files, **facts)


@pytest.mark.parametrize(
    ("required", "metrics"),
    [
        ([], {"accuracy"}),
        (["probe"], {"accuracy", "recoverability"}),
        (["mine"], {"accuracy", "membership_loss"}),
        (["mine", "probe", "loss"], {"accuracy", "recoverability", "membership_loss"}),
    ],
)
def test_required_by_label(tmp_path: Path, required: list[str], metrics: set[str]) -> None:
    parts: list[tuple[str, str, Role]] = [
        ("accuracy", "accuracy", "knowledge"),
        ("probe", "recoverability", "knowledge"),
        ("mine", "membership_loss", "knowledge"),
        ("loss", "loss", "description"),
    ]
    stages = [entry(tmp_path, model, *part) for model in ("original", "reference", "npo") for part in parts]
    manifest = Manifest(
        stages=tuple(stages),
        models=("original", "reference", "npo"),
        seeds=(0,),
        attacks=(),
        required=tuple(required),
        about_one_model=False,
        versions={},
    )
    found = read_table(tmp_path, manifest).quantities("npo")
    assert {quantity.metric for quantity in found if quantity.required} == metrics
