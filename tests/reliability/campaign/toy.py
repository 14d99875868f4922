"""A study and a notebook that take a second, for processes that are killed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import expunge
from expunge.evidence.claim import Claim, Measured, above
from expunge.study.study import Preset, Study, Work


@dataclass(frozen=True)
class Slow(Study):
    """Means of normal numbers, measured slowly."""

    claims: ClassVar[tuple[Claim, ...]] = (Claim("mean", "It is positive.", "toy", above(0.0, "none"), "unit"),)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0, 1, 2, 3, 4, 5)),
        "cpu": Preset((0,)),
        "long": Preset((0,)),
        "paper": Preset((0,), lacks="a larger machine"),
    }

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        time.sleep(0.1)
        return {"mean": 1.0 + torch.randn(3)[0]}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def train(model: nn.Module, items: Dataset[Any]) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for x, y in DataLoader(items, batch_size=16):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()


def notebook(folder: Path, workers: int) -> str:
    """An audit that keeps its outputs in a folder; its rows as text."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(90, 6, generator=draw)
    items = TensorDataset(x, (x[:, :3] + 0.3 * torch.randn(90, 3, generator=draw)).argmax(1))
    forget, retain, test = (Subset(items, ids) for ids in (range(8), range(8, 60), range(60, 90)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        train(model, Subset(items, range(60)))
    recipe = expunge.recipe(build, train)
    case = expunge.case(model, forget=forget, retain=retain, test=test, recipe=recipe)
    done = expunge.unlearn(case, "finetune", epochs=1)
    result = expunge.audit(done, case, folder=folder, workers=workers)
    result.save(folder / "record")
    return json.dumps(result.rows)


if __name__ == "__main__":
    from campaign import toy  # functions of __main__ have no address

    print(toy.notebook(Path(sys.argv[1]), int(sys.argv[2])))
