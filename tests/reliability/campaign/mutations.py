"""Mutated specs, settings, arrays, ids, weights and scores: each is accepted or refused in one message."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _mutations import HOSTILE, flipped, mutated, places, spec, toml
from _within import within

from campaign.count import CODE, HANG, TRACEBACK, WRONG, Faults, Kind, row
from campaign.project import LIMIT, Table, answered, cli, contents, limited, small, tiny, watched
from expunge.base.errors import ExpungeError
from expunge.core import checkpoint
from expunge.data.arrays import Arrays
from expunge.evidence import scores
from expunge.tasks.indices import Indices

SHORT = 1.5
"""Seconds of an accepted spec that is also run."""


def own(**changes: object) -> Table:
    """A spec with files of the user's."""
    table = tiny(
        name="own",
        data={"name": "arrays", "path": "own.npz"},
        forget={"name": "indices", "path": "forget.json"},
        seeds=[0],
        train={"epochs": 1},
    )
    return table | changes


WEIGHTED = {"name": "mlp", "widths": [16], "weights": "own.safetensors"}
BASES: list[Table] = [
    tiny(),
    small(gallery=True),
    own(model=WEIGHTED),
    own(objective={"name": "classification"}, audit=[{"name": "loss"}, {"name": "membership"}]),
    tiny(diagnostic=[{"name": "memorization"}], gate=[{"method": "random_relabel", "verdict": "erased"}]),
    tiny(
        monitor=[{"name": "feature_loss"}], augmentation=[{"name": "noise"}], model={"name": "mlp", "widths": [16, 16]}
    ),
]


@dataclass
class Files:
    """The files of the user's, by name."""

    contents: dict[str, bytes]
    data: Arrays
    whole: object


def arrays(**changes: np.ndarray) -> bytes:
    draw = np.random.default_rng(0)
    x = draw.random((60, 5)).astype(np.float32)
    table = {"x": x[:40], "y": np.arange(40) % 3, "tx": x[40:], "ty": np.arange(20) % 3, "groups": np.arange(60)}
    buffer = io.BytesIO()
    np.savez(buffer, **(table | changes))
    return buffer.getvalue()


def _prepare(folder: Path) -> Files:
    ids, pickled = io.BytesIO(), io.BytesIO()
    np.save(ids, np.arange(3))
    model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    torch.save(model.state_dict(), pickled)
    held = scores.Scores("loss", "forget", np.arange(4.0), np.arange(4), "knowledge", "nats", "lower")
    files = {
        "own.npz": arrays(),
        "ids.npy": ids.getvalue(),
        "forget.json": b"[0, 1, 2]",
        "ids.txt": b"0\n1\n2\n",
        "linear.safetensors": checkpoint.dump(torch.nn.Linear(5, 3)),
        "own.pt": pickled.getvalue(),
        "scores.safetensors": scores.dumps([held]),
    }
    (folder / "own.npz").write_bytes(files["own.npz"])
    data = Arrays(str(folder / "own.npz"))
    with _here(folder):
        (folder / "forget.json").write_bytes(files["forget.json"])
        (folder / "spec.toml").write_text(spec(own()))
        cli("run", "spec.toml", "--out", folder / "runs", "--workers", 1)
        files["own.safetensors"] = next((folder / "runs" / "own" / "models").glob("original*")).read_bytes()
    return Files(files, data, data())


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[None]:
    """Inside, this folder is the working directory, and nothing that a spec adds to the path stays there."""
    before, path = Path.cwd(), [*sys.path]
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


def _attempt(files: Files, number: int, rng: random.Random, folder: Path) -> Faults:
    what = ("spec", "spec", "spec", "setting", "file", "file", "named file", "spec", "setting", "file")[number % 10]
    for name in ("own.npz", "forget.json", "own.safetensors"):
        (folder / name).write_bytes(files.contents[name])
    with _here(folder):
        yield from {"spec": _spec, "setting": _setting, "file": _file, "named file": _named}[what](files, rng, folder)


def _planned(text: str | bytes, rng: random.Random, folder: Path, what: str, *options: object) -> Faults:
    """A dry run; some of the short specs that it accepts are run, twice."""
    path = folder / "spec.toml"
    path.write_bytes(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
    with watched(folder, "runs") as changes:
        planned = limited("run", path, "--dry-run", "--json", "--out", folder / "runs", *options)
    shown = f"{what}\n{text!r}"
    yield from answered(planned, (0, 2, 3), shown)
    yield from changes
    if (folder / "runs").exists():
        yield CODE, f"a dry run wrote {sorted((folder / 'runs').rglob('*'))}: {shown}"
    if planned is None or planned.code != 0 or rng.random() > 0.06 or json.loads(planned.out)["seconds"] > SHORT:
        return
    # A forecast is no bound, so a run may be long; it may not end in anything else than a result or a message.
    command = ("run", path, "--out", folder / "runs", "--workers", 1, *options)
    with watched(folder, "runs") as changes:
        first = limited(*command, seconds=20)
    if first is not None:
        yield from answered(first, (0, 1, 2, 3, 4), shown)
        yield from changes
    if first is not None and first.code == 0:
        before = contents(folder / "runs")
        yield from answered(limited(*command), (0,), f"again: {shown}")
        if contents(folder / "runs") != before:
            yield WRONG, f"another run gives other bytes: {shown}"


def _spec(files: Files, rng: random.Random, folder: Path) -> Faults:
    yield row("mutated specs")
    text = spec(mutated(rng.choice(BASES), rng))
    yield from _planned(flipped(text.encode(), rng) if rng.random() < 0.25 else text, rng, folder, "spec")


def _setting(files: Files, rng: random.Random, folder: Path) -> Faults:
    yield row("mutated settings")
    base = rng.choice(BASES)
    place = rng.choice(places(base)[1:])
    value = rng.choice(HOSTILE)
    key = ".".join(map(str, place))
    if rng.random() < 0.2:
        key = flipped(key.encode(), rng).decode(errors="replace")
    option = f"{key}={toml(value) if rng.random() < 0.7 else value}"
    if "\0" in option:  # no command line can hold a zero byte
        option = option.replace("\0", "")
    yield from _planned(spec(base), rng, folder, f"--set {option!r}", "--set", option)


READ: dict[str, str] = {
    "own.npz": "mutated npz",
    "ids.npy": "mutated ids",
    "forget.json": "mutated ids",
    "ids.txt": "mutated ids",
    "linear.safetensors": "mutated weights",
    "own.pt": "mutated weights",
    "scores.safetensors": "mutated scores",
}


def _file(files: Files, rng: random.Random, folder: Path) -> Faults:
    """A file of any bytes, read directly, because that is quick."""
    name = rng.choice(sorted(READ))
    yield row(READ[name])
    content = flipped(files.contents[name], rng)
    (folder / name).write_bytes(content)
    net = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    reading: dict[str, Callable[[], object]] = {
        "own.npz": lambda: Arrays(str(folder / name))(),
        "linear.safetensors": lambda: checkpoint.restore(torch.nn.Linear(5, 3), content, "weights"),
        "own.pt": lambda: checkpoint.restore(net, content, "weights"),
        "scores.safetensors": lambda: scores.loads(content),
    }
    read = reading.get(name, lambda: Indices(str(folder / name))(files.whole, 0, {}))
    try:
        with within(LIMIT), contextlib.suppress(ExpungeError):
            read()
    except TimeoutError:
        yield HANG, f"{name}: {content!r}"
    except BaseException as error:
        yield TRACEBACK, f"{type(error).__name__}: {error} in {name}: {content!r}"


def _named(files: Files, rng: random.Random, folder: Path) -> Faults:
    """A file of any bytes that a spec names."""
    name = rng.choice(["own.npz", "forget.json", "own.safetensors"])
    yield row("mutated files that a spec names")
    content = flipped(files.contents[name], rng)
    (folder / name).write_bytes(content)
    yield from _planned(spec(own(model=WEIGHTED)), rng, folder, f"{name}: {content!r}")


KIND = Kind("mutations", 10_000, tuple(range(300)), _prepare, _attempt)
