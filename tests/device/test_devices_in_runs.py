"""Devices by name; a run says on what it ran, and numbers of another device or precision have another key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expunge.base.errors import SpecError
from expunge.base.spec import Spec, parse
from expunge.base.user_code import add_search_path
from expunge.core import device as devices
from expunge.core.modules import first_parameter
from expunge.pipeline.plan import Plan
from expunge.pipeline.run import run
from helpers import tiny


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_names_on_a_machine_with_two_gpus(two_gpus: None) -> None:
    names = ("auto", "cpu", "cuda", "cuda:1")
    assert [str(devices.resolve(name)) for name in names] == ["cuda:0", "cpu", "cuda:0", "cuda:1"]
    with pytest.raises(SpecError, match="allowed: auto, cuda:0, cuda:1, cpu"):
        devices.resolve("cuda:2")


def test_auto_takes_mps_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(devices.resolve("auto")) == "mps"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:1", "mps:0", ""])
def test_a_name_that_means_no_device(name: str) -> None:
    with pytest.raises(SpecError, match="cuda:<number>") as error:
        devices.resolve(name)
    assert error.value.where == "device"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"which this machine does not have; allowed: auto, cpu; .*expunge doctor"):
        Plan(spec_of(device="cuda"))


def spec_of(**changes: object) -> Spec:
    return parse(tiny(**changes), Path())


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"device": 1}, "device"), ({"precision": "fp8"}, "precision"), ({"checkpointing": True}, "checkpointing")],
)
def test_settings_are_checked(changes: dict[str, object], where: str) -> None:
    with pytest.raises(SpecError) as error:
        spec_of(**changes)
    assert error.value.where == where


def keys(spec: Spec) -> set[str]:
    return {stage.key for stage in Plan(spec).stages}


def test_another_device_or_precision_has_other_keys(two_gpus: None) -> None:
    spec = spec_of(device="cpu")
    assert keys(spec) == keys(replace(spec, checkpointing="0"))
    for other in (replace(spec, device="cuda"), replace(spec, precision="bf16")):
        assert not keys(spec) & keys(other)
    assert keys(replace(spec, device="cuda")) == keys(replace(spec, device="cuda:1"))


def test_a_run_in_bf16_says_on_what_it_ran(tmp_path: Path) -> None:
    spec = spec_of(device="cpu", precision="bf16")
    outcome = run(spec, tmp_path)
    env = json.loads((outcome.folder / "env.json").read_text())
    assert (env["device"], env["precision"]) == ("cpu", "bf16")
    resolved = json.loads((outcome.folder / "spec.json").read_text())
    assert (resolved["device"], resolved["precision"]) == ("cpu", "bf16")
    events = [json.loads(line) for line in (outcome.folder / "events.jsonl").read_text().splitlines()]
    assert {(event["device"], event["precision"]) for event in events} == {("cpu", "bf16")}
    with pytest.raises(SpecError, match="precision was 'bf16', is 'float32'"):
        run(replace(spec, precision="float32"), tmp_path)


def test_models_of_a_run_are_built_on_its_device() -> None:
    plan = Plan(spec_of(device="cpu"))
    assert plan.device == torch.device("cpu") == first_parameter(plan.recipe(plan.data).build(0)).device


def test_a_function_of_the_users_that_draws_from_numpy_gives_the_same_numbers(tmp_path: Path) -> None:
    """An audit in a spec, which no call of the library wraps."""
    (tmp_path / "drawing.py").write_text(
        "import random\n"
        "import numpy as np\n"
        "from expunge.evidence.scores import Scores\n"
        "def look(model, case, seed):\n"
        "    ids = case.problem.unexposed.numpy()\n"
        "    values = np.random.rand(len(ids)) + random.random()\n"
        "    return [Scores('drawn', 'forget', values, ids, 'description', 'share', 'reference')]\n"
    )
    add_search_path(tmp_path)
    spec = replace(spec_of(seeds=[0], audit=[{"name": "drawing:look"}], attack=[]), folder=tmp_path)
    rows = [[row["value"] for row in run(spec, tmp_path / out).rows if row["metric"] == "drawn"] for out in "ab"]
    assert rows[0] and rows[0] == rows[1]
