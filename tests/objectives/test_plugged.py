"""An objective of another package: one file, named in a spec and in a notebook."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.base import registry
from expunge.core.data import Batch
from expunge.core.objective import Metric, Objective
from helpers import finished, run


@dataclass(frozen=True)
class Angle(Objective):
    """Directions in the plane: outputs and targets `[b]` in radians; knowledge is the cosine of the error."""

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("cosine", knowledge=True, utility=True, bound=0.05),)
    loss_unit: ClassVar[str] = "1 - cosine"

    @property
    def outputs(self) -> int:
        return 1

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return 1 - self._cosine(model, batch).double()

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"cosine": self._cosine(model, batch)}

    def _cosine(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.cos(self.prediction(model, batch).flatten() - batch.targets.to(torch.get_default_dtype()))


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    point = {"angle": EntryPoint("angle", f"{__name__}:Angle", "expunge.objectives")}
    monkeypatch.setattr(registry, "_entry_points", lambda kind: point if kind == "objective" else {})


def test_a_spec_is_judged_by_it(plugged: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(160, 6)).astype(np.float32), rng.uniform(-3, 3, 160).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x[:100], y=y[:100], tx=x[100:], ty=y[100:])
    (tmp_path / "forget.txt").write_text("\n".join(map(str, range(20))))
    table = {
        "name": "angles",
        "seeds": [0, 1, 2, 3, 4],
        "data": {"name": "arrays", "path": "own.npz"},
        "objective": {"name": "angle"},
        "model": {"name": "mlp", "widths": [128]},
        "train": {"epochs": 200, "learning_rate": 0.01},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "retrain"}, {"name": "finetune", "epochs": 2}],
        "attack": [{"name": "relearn", "epochs": 1}],
    }
    found = json.loads(finished(run(table, tmp_path / "runs", "--json")).out)
    verdicts = {verdict["model"]: verdict["flags"] for verdict in found["verdicts"]}
    # Numbers at random can only be learned by heart.
    assert verdicts["finetune"][0] == "incomplete" and "incomplete" not in verdicts["retrain"]
    utility = [a for v in found["verdicts"] for a in v["audits"] if a["role"] == "utility"]
    assert {a["metric"] for a in utility} == {"cosine"} and {a["margin"] for a in utility} == {0.05}


def test_a_notebook_takes_it_by_name(plugged: None) -> None:
    x, y = torch.randn(40, 6), torch.rand(40)
    parts = {"forget": (x[:8], y[:8]), "retain": (x[8:30], y[8:30]), "test": (x[30:], y[30:])}
    case = expunge.case(nn.Linear(6, 1), objective="angle", **parts)
    rows = expunge.audit(expunge.unlearn(case, "finetune", epochs=1), case, audits=["loss"]).rows
    assert {row["metric"] for row in rows} >= {"cosine", "loss"}
    assert {row["unit"] for row in rows if row["metric"] == "loss"} == {"1 - cosine"}
