"""Full, failing and read-only disks, and files that may not be read."""

from __future__ import annotations

import builtins
import errno
import os
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from campaign.changing import SPEC, made
from campaign.count import WRONG, Faults, Kind, row
from campaign.project import (
    MAIN,
    answered,
    copied,
    ended,
    limited,
    rerun,
    same_bytes,
    small,
    started,
    undisturbed,
    watched,
    write_spec,
)

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES)
NOBODY = 65534


@dataclass
class Clean:
    """Undisturbed runs, and a project with input files and code."""

    runs: Path
    project: Path


def _prepare(folder: Path) -> Clean:
    (folder / "own").mkdir()
    clean = Clean(undisturbed(folder), made(folder / "own"))
    copied(clean.runs, folder)
    for verb in ("verify", "report"):  # Python imports now what another user may not read
        limited(verb, folder / "runs" / "tiny")
    return clean


def _attempt(clean: Clean, number: int, rng: random.Random, folder: Path) -> Faults:
    if number % 5 < 3:
        yield from _failing(clean, rng, folder)
    elif number % 5 == 3:
        yield from _limited_files(clean, rng, folder)
    else:
        yield from _unreadable(clean, rng, folder)


def _failing(clean: Clean, rng: random.Random, folder: Path) -> Faults:
    """From some moment on, or once, writing fails."""
    code, moment, once = rng.choice(ERRORS), rng.randrange(140), rng.random() < 0.3
    yield row("full, failing or read-only disk")
    if rng.random() < 0.3:
        shutil.rmtree(copied(clean.runs, folder) / "cache")
    with watched(folder, "runs", "spec.toml") as changes, _broken(code, moment, once):
        result = rerun(folder, small())
    what = f"{errno.errorcode[code]} at writing {moment}{', once' if once else ''}"
    yield from answered(result, (0, 4), what)
    yield from changes
    yield from _recovers(clean, folder, what)


@contextmanager
def _broken(code: int, moment: int, once: bool) -> Iterator[None]:
    calls = [0]

    def hooked(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] == moment or (calls[0] > moment and not once):
                raise OSError(code, os.strerror(code))
            return function(*arguments, **keywords)

        return call

    opening = hooked(builtins.open)

    def opened(path: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        writes = any(letter in mode for letter in "wxa")
        return (opening if writes else builtins_open)(path, mode, *arguments, **keywords)

    builtins_open = builtins.open
    names = ("fsync", "replace", "mkdir", "rename")
    patches: list[Any] = [mock.patch.object(os, name, hooked(getattr(os, name))) for name in names]
    patches.append(mock.patch("expunge.base.record.open", opened, create=True))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _limited_files(clean: Clean, rng: random.Random, folder: Path) -> Faults:
    """No file may grow beyond some bytes, as with a quota; the operating system enforces it."""
    size = rng.choice([0, 100, 500, 1000, 3000, 5000, 20_000])
    yield row("files cannot grow")
    spec = write_spec(folder, small())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    with watched(folder, "runs", "spec.toml") as changes:
        process = started(
            MAIN, "run", spec, "--out", folder / "runs", "--workers", rng.choice([1, 2]), preexec_fn=limit
        )
        result = ended(process)
    yield from answered(result, (0, 4), f"files of at most {size} bytes")
    yield from changes
    yield from _recovers(clean, folder, f"files of at most {size} bytes")


def _recovers(clean: Clean, folder: Path, what: str) -> Faults:
    result = rerun(folder, small())
    yield from answered(result, (0,), f"rerun after {what}")
    difference = same_bytes(folder / "runs", clean.runs) if (folder / "runs").is_dir() else "there are no runs"
    if difference:
        yield WRONG, f"{difference} after {what}"


INPUTS = ("own.npz", "forget.txt", "own.safetensors", "theirs.safetensors", "spec.toml", "own_net.py", "own_layers.py")
OF_RECORD = ("manifest.json", "spec.json", "env.json", "results.jsonl", "verdicts.json")


def _unreadable(clean: Clean, rng: random.Random, folder: Path) -> Faults:
    """Another user without any rights, because root may read everything."""
    case = rng.choice(["input", "input", "cache", "output", "record", "record for reading", "runs", "out"])
    yield row("unreadable files and read-only folders")
    project = Path(shutil.copytree(clean.project, folder / "project"))
    table, runs = {**SPEC, "seeds": [0]}, project / "runs"
    if case != "input":
        table = small()
        shutil.copytree(clean.runs, runs)
    spec = write_spec(project, table)
    closed: list[Path] = []
    command: tuple[object, ...] = ("run", spec, "--out", runs, "--workers", 1)
    codes: tuple[int, ...] = (2, 3, 4)
    if case == "input":
        closed = [project / rng.choice(INPUTS)]
    elif case == "cache":
        closed = [runs / "cache"]
    elif case == "runs":
        closed, codes = [runs], (0,)  # every stage is there, so nothing in the folder itself has to be written
    elif case == "out":
        shutil.rmtree(runs)
        closed = [project]
    elif case == "output":
        closed, codes = [rng.choice(sorted((runs / "cache").rglob("*")))], (0, 4)
    else:
        closed = [runs / "tiny" / rng.choice(OF_RECORD)]
        codes = (0, 2, 4)
        if case == "record for reading":
            command, codes = (rng.choice(["verify", "report"]), runs / "tiny"), (2, 4)
    mode = 0o500 if case in ("runs", "out") else rng.choice([0o000, 0o200])
    with _as_nobody(folder, closed, mode):
        result = limited(*command)
    yield from answered(result, codes, f"{case} {[p.name for p in closed]} with mode {mode:o}")
    if case in ("cache", "output", "record") and result is not None:
        again = limited("run", spec, "--out", runs, "--workers", 1)
        yield from answered(again, (0, 2) if case == "record" else (0,), "a run afterwards")
    if case == "runs" and (difference := same_bytes(runs, clean.runs)):
        yield WRONG, f"{difference} after a run in a read-only folder"


@contextmanager
def _as_nobody(folder: Path, closed: list[Path], mode: int) -> Iterator[None]:
    """Inside, this process has the rights of a user to whom the folder belongs, with some of its files closed."""
    root = os.getuid() == 0
    for place in (folder.parent, folder):
        place.chmod(0o755)
    for path in (folder, *folder.rglob("*")) if root else ():
        os.chown(path, NOBODY, NOBODY)
    before = {path: path.stat().st_mode for path in closed}
    for path in closed:
        path.chmod(mode)
    try:
        if root:
            os.setresuid(NOBODY, NOBODY, 0)
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        for path, old in before.items():
            if path.exists():
                path.chmod(old)
        for path in (folder, *folder.rglob("*")) if root else ():
            if not path.is_symlink():
                os.chown(path, 0, 0)


KIND = Kind("disks", 60, (0, 1), _prepare, _attempt)
