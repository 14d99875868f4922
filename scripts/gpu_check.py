"""Run the library on a GPU and on the CPU, and compare: the demo, the recitation example, every method once on digits.

    python scripts/gpu_check.py --out gpu-check --json gpu.json

Prints a table of seconds and of how far verdicts and weights agree. Exit code 3 where there is no GPU, 1 where a part
failed on it, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expunge.base import registry
from expunge.base.spec import read
from expunge.core.case import train_model
from expunge.core.device import available, device_name, resolve
from expunge.data.digits import Digits
from expunge.models.mlp import MLP
from expunge.objectives.classification import Classification
from expunge.pipeline.run import run
from expunge.tasks.random_subset import RandomSubset
from expunge.train.training import TrainedRecipe, Training

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SPECS = ("demo", "recitation")
FILES = {"checkpoint"}
"""Reads weights from a file."""
NO_GPU = 3

Row = dict[str, Any]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1 or mps")
    parser.add_argument("--out", type=Path, help="folder for records; a temporary one by default")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--only", choices=(*SPECS, "methods"), help="one part of the check")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each spec")
    return parser.parse_args(given)


def spec_row(name: str, device: str, out: Path, seeds: int) -> Row:
    """Seconds of an example's run on both devices, and whether the verdicts are the same."""
    outcomes, seconds = [], []
    for where in ("cpu", device):
        changes = [f'device="{where}"', f"seeds={list(range(seeds))}", f'name="{name}-{where.replace(":", "-")}"']
        start = time.perf_counter()
        outcomes.append(run(read(EXAMPLES / f"{name}.toml", changes), out))
        seconds.append(time.perf_counter() - start)
    same = [a.verdict == b.verdict for a, b in zip(*(outcome.verdicts for outcome in outcomes), strict=True)]
    return {"what": name, "cpu": seconds[0], "gpu": seconds[1], "agrees": f"{sum(same)} of {len(same)} verdicts"}


def method_row(name: str, device: torch.device) -> Row:
    """Seconds of a method on both devices, and the relative distance between the two results."""
    data, method = Digits(train=600)(), registry.load("method", name)()
    problem = RandomSubset(count=60)(data, 0, {})
    recipe = TrainedRecipe(MLP(), Training(epochs=5), data)
    original = train_model(recipe, data, problem.train, 0)
    ours, theirs = (timed(method, original, problem, recipe, where) for where in (torch.device("cpu"), device))
    return {
        "what": name,
        "cpu": ours[1],
        "gpu": theirs[1],
        "agrees": f"weights within {distance(ours[0], theirs[0]):.0e}",
    }


def for_digits() -> list[str]:
    """The methods that need no more than a classifier and a recipe."""
    there = Classification.provides | {"recipe"}
    return [n for n in registry.names("method") if n not in FILES and registry.load("method", n).needs <= there]


def timed(method: Any, original: Any, problem: Any, recipe: TrainedRecipe, device: torch.device) -> tuple[Any, float]:
    """The unlearned model and the seconds that it took; a first call starts the device."""
    recipe = replace(recipe, device=device)
    done = [method(moved(original, recipe), problem, recipe, 0) for _ in range(2)]
    return done[1].model, done[1].cost.seconds


def moved(original: Any, recipe: TrainedRecipe) -> Any:
    """A copy of the model on the recipe's device."""
    fresh = recipe.build(0)
    fresh.load_state_dict(original.state_dict())
    return fresh.eval()


def distance(a: Any, b: Any) -> float:
    """Norm of the difference of all weights over the norm of the first ones."""
    ours, theirs = (torch.cat([p.detach().double().cpu().flatten() for p in m.parameters()]) for m in (a, b))
    return float((ours - theirs).norm() / ours.norm())


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [f"{'':24} {'CPU s':>9} {'GPU s':>9} {'faster':>7}  agrees"]
    for row in rows:
        if "error" in row:
            lines.append(f"{row['what']:24} failed: {row['error']}")
            continue
        factor = row["cpu"] / row["gpu"]
        lines.append(f"{row['what']:24} {row['cpu']:9.2f} {row['gpu']:9.2f} {factor:6.1f}x  {row['agrees']}")
    return "\n".join(lines)


def attempted(what: str, part: Callable[[], Row]) -> Row:
    """The row of a part; where it fails, one that says why."""
    try:
        return part()
    except Exception as error:  # a check goes on to the next part
        return {"what": what, "error": f"{type(error).__name__}: {error}"}


def main(given: Sequence[str] | None = None) -> int:
    """Run the check."""
    asked = arguments(given)
    if available() == ["cpu"]:
        print("no GPU on this machine; `expunge doctor` says what is missing", file=sys.stderr)
        return NO_GPU
    device = resolve(asked.device, where="--device")
    with tempfile.TemporaryDirectory() as folder:
        out = asked.out or Path(folder)
        parts = {name: partial(spec_row, name, str(device), out, asked.seeds) for name in SPECS}
        parts |= {name: partial(method_row, name, device) for name in for_digits()}
        chosen = [name for name in parts if asked.only in (None, name if name in SPECS else "methods")]
        rows = [attempted(name, parts[name]) for name in chosen]
    print(f"{device_name(device)}, torch {torch.__version__}\n{table(rows)}")
    if asked.json:
        asked.json.write_text(json.dumps({"device": device_name(device), "rows": rows}, indent=1) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
