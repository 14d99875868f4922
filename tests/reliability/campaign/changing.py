"""Input files and code that change while a run reads them, and that may be put back."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import load_file, save_file

from campaign.count import WRONG, Faults, Kind, row
from campaign.project import MAIN, answered, cli, contents, ended, finished, limited, started, watched, write_spec
from expunge.base.store import Store
from expunge.core import checkpoint
from expunge.pipeline.worker import Worker
from helpers import wrong_digits

NET = """
import torch
from torch import nn

def build(data):
    import own_layers
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), own_layers.Act(), nn.Linear(12, 10))
"""
LAYERS = "import torch\n\nclass Act(torch.nn.Module):\n    def forward(self, x):\n        return torch.relu(x)\n"
SPEC = {
    "name": "own",
    "seeds": [0, 1],
    "data": {"name": "arrays", "path": "own.npz"},
    "model": {"name": "own_net:build", "weights": "own.safetensors"},
    # So little training that references are like the original, whatever file is exchanged.
    "train": {"epochs": 1, "learning_rate": 0.003},
    "forget": {"name": "indices", "path": "forget.txt"},
    "method": [{"name": "checkpoint", "path": "theirs.safetensors"}, {"name": "finetune", "epochs": 1}],
    "attack": [{"name": "relearn", "epochs": 1}],
}
FILES = ("own.npz", "forget.txt", "own.safetensors", "theirs.safetensors", "own_net.py", "own_layers.py")


@dataclass
class Clean:
    """The project, and what undisturbed runs give with each file in both versions."""

    project: Path
    _outputs: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def outputs(self, file: str) -> dict[str, bytes]:
        """Path below the runs -> content, after a run with another version of this file; of none if it is empty."""
        if file not in self._outputs:
            copy = Path(shutil.copytree(self.project, self.project.parent / f"with-{file}"))
            if file:
                os.replace(other_version(copy / file), copy / file)
            with _fresh_modules(copy):
                finished(cli("run", copy / "spec.toml", "--out", copy / "runs", "--workers", 1))
            self._outputs[file] = contents(copy / "runs")
        return self._outputs[file]


def _prepare(folder: Path) -> Clean:
    return Clean(made(folder))


def made(folder: Path) -> Path:
    """A project with input files of every kind and code of its own."""
    project = folder / "project"
    project.mkdir()
    wrong_digits(project, 8, 60, 30)
    (project / "own_net.py").write_text(NET)
    (project / "own_layers.py").write_text(LAYERS)
    write_spec(project, SPEC)
    for name in ("own.safetensors", "theirs.safetensors"):
        with _fresh_modules(project):
            sys.path.append(str(project))
            try:
                net = importlib.import_module("own_net").build(None)
            finally:
                sys.path.remove(str(project))
            (project / name).write_bytes(checkpoint.dump(net))
    return project


def other_version(path: Path) -> Path:
    """Another valid content of an input file, beside it."""
    other = path.with_name(f"other-{path.name}")
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
        np.savez(other, **{**arrays, "x": arrays["x"][::-1]})
    elif path.suffix == ".txt":
        other.write_text("\n".join(map(str, range(20, 28))))
    elif path.suffix == ".py":
        other.write_text(
            path.read_text().replace("torch.relu(x)", "1.5 * torch.relu(x)").replace("own_layers.Act()", "nn.Tanh()")
        )
    else:
        save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, other)
    return other


def _attempt(clean: Clean, number: int, rng: random.Random, folder: Path) -> Faults:
    file, processes = FILES[number % len(FILES)], number % 8 == 7
    yield row(f"changing {'code' if file.endswith('.py') else 'input'}, {'2 workers' if processes else '1 worker'}")
    project = Path(shutil.copytree(clean.project, folder / "project"))
    path, aside, other = project / file, folder / "aside", other_version(project / file)
    back, in_place = rng.random() < 0.6, rng.random() < 0.5
    first, second = path.read_bytes(), other.read_bytes()

    def change() -> None:
        if in_place:
            path.write_bytes(second)
        else:
            os.replace(path, aside), os.replace(other, path)

    def restore() -> None:
        if in_place:
            path.write_bytes(first)
        else:
            os.replace(path, other), os.replace(aside, path)

    begin = rng.random()
    acts = [(begin, change)] + ([(begin + rng.random() * (1 - begin), restore)] if back else [])
    with watched(folder, "project", "aside") as changes:
        result = _in_processes(project, acts) if processes else _here(project, acts)
    what = f"{file} changed at {acts[0][0]:.2f} of the run{' and back' if back else ''}"
    yield from answered(result, (0, 2, 4), what)
    yield from changes
    yield from _checked(clean, project / "runs", file, what)
    for at in range(2):
        with _fresh_modules(project):
            result = limited("run", project / "spec.toml", "--out", project / "runs", "--workers", 1)
        if result is not None and result.code == 0:
            break
        yield from answered(result, (0, 4) if at == 0 else (0,), f"rerun {at} after {what}")
    held = {name: data for name, data in contents(project / "runs").items() if not name.startswith("cache/")}
    now = file if path.read_bytes() == second else ""
    wanted = {name: data for name, data in clean.outputs(now).items() if not name.startswith("cache/")}
    if held != wanted:
        yield WRONG, f"the record differs from that of an undisturbed run after {what}"
    yield from _checked(clean, project / "runs", file, what)


def _checked(clean: Clean, runs: Path, file: str, what: str) -> Faults:
    held, wanted = contents(runs) if runs.is_dir() else {}, {**clean.outputs(""), **clean.outputs(file)}
    for name in (name for name in held if name.startswith("cache/")):
        if wanted.get(name, held[name]) != held[name]:
            yield WRONG, f"{name} holds other numbers than its key stands for after {what}"


Acts = list[tuple[float, Callable[[], object]]]
"""Share of the run, and what happens then."""


def _here(project: Path, acts: Acts) -> Any:
    """Run in this process; the moments are starts of stages and writings of outputs, about 60 in a run."""
    events, waiting = [0], list(acts)

    def hooked(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            events[0] += 1
            while waiting and events[0] >= 60 * waiting[0][0]:
                waiting.pop(0)[1]()
            return function(*arguments, **keywords)

        return call

    with (
        _fresh_modules(project),
        mock.patch.object(Worker, "run", hooked(Worker.run)),
        mock.patch.object(Store, "put", hooked(Store.put)),
    ):
        result = limited("run", project / "spec.toml", "--out", project / "runs", "--workers", 1)
    for _, act in waiting:
        act()
    return result


def _in_processes(project: Path, acts: Acts) -> Any:
    """Run with two workers, while the clock decides when a file changes."""
    process = started(MAIN, "run", project / "spec.toml", "--out", project / "runs", "--workers", 2)
    timers = [threading.Timer(8 * share, act) for share, act in acts]
    for timer in timers:
        timer.start()
    result = ended(process)
    for timer in timers:
        timer.join()
    return result


@contextmanager
def _fresh_modules(project: Path) -> Iterator[None]:
    """Inside, Python imports the project's modules anew, as another process does."""

    def forget() -> None:
        for name in ("own_net", "own_layers"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    forget()
    # A module that was written again within a second would be read from its compiled file.
    with mock.patch.object(sys, "dont_write_bytecode", True):
        yield
    forget()


KIND = Kind("changing", 48, (0,), _prepare, _attempt)
