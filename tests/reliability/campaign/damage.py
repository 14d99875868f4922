"""Damaged and missing outputs in the cache, of every kind of stage and upstream ones, and damaged files of a record."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from _mutations import flipped, mutated

from campaign.count import WRONG, Faults, Kind, row
from campaign.project import answered, copied, limited, outside, rerun, same_bytes, small, undisturbed, watched

Harm = Callable[[Path, random.Random, Path], object]
"""A file, random numbers, and a folder elsewhere."""


def _in_place(make: Callable[[Path, Path], object]) -> Harm:
    def act(path: Path, rng: random.Random, elsewhere: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path, elsewhere)

    return act


def _twice(path: Path, rng: random.Random, elsewhere: Path) -> None:
    """A hard link, through which an editor changes the file."""
    link = elsewhere / f"{rng.random()}"
    os.link(path, link)
    link.write_bytes(flipped(path.read_bytes(), rng))


def _other(path: Path, rng: random.Random, elsewhere: Path) -> None:
    """Another file of the same folder for runs, whole and in the wrong place."""
    alike = [p for p in path.parents[2].rglob(path.name) if p.is_file() and p.read_bytes() != path.read_bytes()]
    if alike:
        shutil.copy(rng.choice(sorted(alike)), path)
    else:
        path.write_bytes(b"")


def _rewritten(path: Path, rng: random.Random, elsewhere: Path) -> None:
    """Plain data with changed values."""
    if path.suffix != ".json":
        path.write_bytes(flipped(path.read_bytes(), rng))
        return
    table = json.loads(path.read_text())
    path.write_text(json.dumps(mutated(table, rng) if isinstance(table, dict) else [], default=str))


HARMS: dict[str, Harm] = {
    "flipped": lambda path, rng, elsewhere: path.write_bytes(flipped(path.read_bytes(), rng)),
    "cut": lambda path, rng, elsewhere: path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)]),
    "longer": lambda path, rng, elsewhere: path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 9))),
    "deleted": lambda path, rng, elsewhere: path.unlink(),
    "other": _other,
    "rewritten": _rewritten,
    "hard link": _twice,
    "folder": _in_place(lambda path, elsewhere: path.mkdir()),
    "pipe": _in_place(lambda path, elsewhere: os.mkfifo(path)),
    "link": _in_place(lambda path, elsewhere: path.symlink_to(elsewhere / "stage.json")),
    "link to itself": _in_place(lambda path, elsewhere: path.symlink_to(path.name)),
}
OF_OUTPUTS: dict[str, Harm] = {
    "deleted": lambda path, rng, elsewhere: shutil.rmtree(path),
    "empty": _in_place(lambda path, elsewhere: path.mkdir()),
    "file": _in_place(lambda path, elsewhere: path.write_text("mine")),
    "pipe": _in_place(lambda path, elsewhere: os.mkfifo(path)),
    "link": _in_place(lambda path, elsewhere: path.symlink_to(elsewhere)),
    "of another": lambda path, rng, elsewhere: _swapped(path, rng),
}


def _swapped(path: Path, rng: random.Random) -> None:
    other = rng.choice(sorted(p for p in path.parent.iterdir() if p != path))
    aside = path.with_name(".aside")
    path.rename(aside), other.rename(path), aside.rename(other)


def _attempt(clean: Path, number: int, rng: random.Random, folder: Path) -> Faults:
    where = ("file of the cache", "output of the cache", "file of the record")[number % 3]
    yield row(f"damaged {where}")
    runs, elsewhere = copied(clean, folder), outside(folder)
    if where != "file of the record" and rng.random() < 0.5:
        shutil.rmtree(runs / "tiny")
    done = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        if where == "output of the cache":
            paths, harms = (
                sorted(p for p in (runs / "cache").iterdir() if p.is_dir() and not p.is_symlink()),
                OF_OUTPUTS,
            )
        else:
            root = runs / ("cache" if "cache" in where else "tiny")
            paths, harms = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()), HARMS
        path, harm = rng.choice(paths), rng.choice(sorted(harms))
        harms[harm](path, rng, elsewhere)
        done.append(f"{harm}: {path.relative_to(runs)}")
    with watched(folder, "runs", "spec.toml") as changes:
        result = rerun(folder, small())
    # A folder with another spec, or with a link in it, may be refused; a folder is not removed from a file's place.
    codes = (0,) if where != "file of the record" else (0, 2, 4) if any("folder" in word for word in done) else (0, 2)
    yield from answered(result, codes, f"rerun after {done}")
    yield from changes
    if result is not None and result.code == 0:
        difference = same_bytes(runs, clean)
        if difference:
            yield WRONG, f"{done}: {difference}"
        yield from answered(limited("verify", runs / "tiny"), (0,), f"verify after {done}")


KIND = Kind("damage", 90, (0, 1), undisturbed, _attempt)
