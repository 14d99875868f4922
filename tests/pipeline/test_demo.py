"""The effect itself, on real images: the very run that `make demo` makes, with what it must show."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALL = [sys.executable, "-c", "from expunge.cli import main; main()"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("demo")
    spec = str(ROOT / "examples" / "demo.toml")
    # One worker: pytest runs its own processes side by side.
    command = [*CALL, "run", spec, "--out", str(out), "--workers", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def value(
    demo: dict[str, Any], model: str, attack: str | None, seed: int | None = None, split: str = "forget"
) -> float:
    for row in demo["rows"]:
        wanted = (model, attack, seed, "accuracy", split)
        if (row["model"], row["attack"], row["seed"], row["metric"], row["split"]) == wanted:
            return float(row["value"])
    raise AssertionError(f"no row for {model} {attack} {seed} {split}")


def verdict(demo: dict[str, Any], model: str) -> str:
    return next(v["verdict"] for v in demo["verdicts"] if v["model"] == model)


def test_there_is_something_to_forget(demo: dict[str, Any]) -> None:
    """Positive control: the audit tells the original from the retrained model in every seed."""
    for seed in (0, 1, 2):
        assert value(demo, "original", None, seed) - value(demo, "reference", None, seed) > 0.5


def test_relabelled_knowledge_is_dormant(demo: dict[str, Any]) -> None:
    """Forget accuracy falls far, retain-only fine-tuning brings it back above 0.9 in every seed."""
    for seed in (0, 1, 2):
        assert value(demo, "random_relabel", None, seed) < 0.6
        assert value(demo, "random_relabel", "relearn", seed) > 0.9
    assert verdict(demo, "random_relabel") == "dormant"


def test_retrained_models_stay_where_they_were(demo: dict[str, Any]) -> None:
    for model in ("reference", "retrain"):
        assert abs(value(demo, model, "relearn") - value(demo, model, None)) <= 0.05


def test_the_null_control_is_not_accused(demo: dict[str, Any]) -> None:
    assert verdict(demo, "retrain") in ("erased", "inconclusive")


def test_fine_tuning_alone_is_incomplete(demo: dict[str, Any]) -> None:
    assert verdict(demo, "finetune") == "incomplete"


def test_weight_distortion_resists(demo: dict[str, Any]) -> None:
    """It is far below the original before the attack, and the attack wins back less than the margin."""
    before, after = (value(demo, "weight_distortion", attack) for attack in (None, "relearn"))
    margin = 0.1 * (value(demo, "original", None) - value(demo, "reference", None))
    assert before < 0.5
    assert after - before < margin
    assert verdict(demo, "weight_distortion") != "dormant"


def test_memory_stays_below_one_and_a_half_gigabytes(demo: dict[str, Any]) -> None:
    """Of the process with one worker; a second worker holds its own copy of torch and the data, about 0.4 GB."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert peak < 1.5, f"{peak:.2f} GB"
