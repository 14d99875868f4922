"""A study of numbers, to test what runs studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from expunge.base.errors import RunError
from expunge.evidence.claim import Claim, Measured, above, ordered
from expunge.evidence.figure import Chart, Figure, Grid, Series
from expunge.pipeline.executors.inline import InlineExecutor
from expunge.study.study import Preset, Study, Work


@dataclass(frozen=True)
class Toy(Study):
    """Means of normal numbers."""

    paper: ClassVar[str] = "Toy, 2020"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("mean", "The mean is positive.", "toy", above(0.0, "zero is no effect"), "unit", primary=True),
        Claim("order", "Larger shifts give larger means.", "toy", ordered("they are shifted by one"), "unit"),
        Claim("absent", "Nobody measures this.", "toy", above(0.0, "none"), "unit"),
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0, 1, 2, 3)),
        "cpu": Preset(tuple(range(6)), {"shift": 2.0}),
        "long": Preset((0, 1), {"fail": 1}),
        "paper": Preset((0,), lacks="a larger machine"),
    }

    shift: float = 1.0
    """Distance of the mean from zero."""
    fail: int = -1
    """Seed that fails unless a file `mended` lies in the folder."""
    log: str = ""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        return {"scale": 0.1}

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        if seed == self.fail and not (work.folder / "mended").exists():
            raise RunError("it failed", where=f"seed {seed}")
        with (Path(work.out) / "log").open("a") as file:
            file.write(f"{seed}\n")
        noise = basis["scale"] * torch.randn(3)
        return {
            "mean": self.shift + noise[0],
            "order": torch.tensor([3.0, 2.0, 1.0]) + noise,
            "order.of": ["a", "b", "c"],
        }

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        y = tuple(float(m["mean"]) for m in seeds.values())
        series = Series("means", tuple(map(float, seeds)), y, labels=tuple(f"seed {s}" for s in seeds))
        return [
            Chart("Means", "seed", "mean (unit)", (series,), "points"),
            Grid("Plane", "column", "row", ("a", "b"), ("c",), ((0.5, 0.75),)),
        ]


@dataclass(frozen=True)
class Noting(InlineExecutor):
    """An executor that writes down how many tasks it gets."""

    def run(self, tasks: Sequence[Any], begun: Any, finished: Any) -> None:
        Path("noted").write_text(f"{len(tasks)} tasks, {self.workers} workers")
        super().run(tasks, begun, finished)
