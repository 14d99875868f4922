"""The script that checks a GPU: its arguments, what it does where there is none, and its parts on the CPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_arguments(script: ModuleType) -> None:
    plain = script.arguments([])
    assert (plain.device, plain.out, plain.json, plain.only, plain.seeds) == ("auto", None, None, None, 1)
    given = script.arguments(["--device", "cuda:1", "--json", "a.json", "--only", "methods", "--seeds", "3"])
    assert (given.device, given.json, given.only, given.seeds) == ("cuda:1", Path("a.json"), "methods", 3)
    with pytest.raises(SystemExit) as error:
        script.arguments(["--only", "everything"])
    assert error.value.code == 2


def test_without_a_gpu_it_says_so_and_ends_with_3(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == script.NO_GPU == 3
    assert "no GPU on this machine" in done.stderr and "expunge doctor" in done.stderr and not done.stdout


def test_a_method_is_timed_and_a_failure_is_a_row(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU in the place of a GPU: everything agrees with itself."""
    monkeypatch.setattr(script, "available", lambda: ["cuda:0", "cpu"])
    monkeypatch.setattr(script, "resolve", lambda name, where: torch.device("cpu"))
    monkeypatch.setattr(script, "for_digits", lambda: ["ssd", "nothing"])
    assert script.main(["--only", "methods", "--json", str(tmp_path / "a.json")]) == 1
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert rows[0]["agrees"] == "weights within 0e+00" and rows[0]["gpu"] > 0
    assert "nothing" in rows[1]["error"]
    assert "ssd" in (printed := capsys.readouterr().out) and "failed" in printed


def test_it_knows_the_methods_that_digits_can_show(script: ModuleType) -> None:
    assert {"finetune", "ssd", "rem", "retrain"} <= set(script.for_digits()) and "checkpoint" not in script.for_digits()
