"""Two runs at once with equal process ids: in two processes, and one in the middle of the other's writing."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from _mutations import flipped

from campaign.count import WRONG, Faults, Kind, row
from campaign.project import (
    MAIN,
    Table,
    answered,
    cli,
    copied,
    ended,
    limited,
    rerun,
    same_bytes,
    small,
    started,
    undisturbed,
    write_spec,
)
from expunge.base import record

CONTAINER = (
    "import os; os.getpid = lambda: 1; os.path.isdir('/proc')\n"
    "import pathlib; exists = pathlib.Path.exists\n"
    "pathlib.Path.exists = lambda path: not str(path).startswith('/proc') and exists(path)\n"
)
"""Both processes are process 1, and neither sees the other."""
OTHERS: list[Table] = [{}, {"name": "other"}, {"method": []}, {"method": [{"name": "finetune", "epochs": 1}]}]


def _attempt(clean: Path, number: int, rng: random.Random, folder: Path) -> Faults:
    changes, nested = rng.choice(OTHERS), number % 4 != 0
    yield row(f"two runs at once, {'one inside the other' if nested else 'two processes'}")
    start = rng.choice(["nothing", "outputs", "damaged outputs", "a record"])
    if start != "nothing":
        copied(clean, folder)
        if start != "a record":
            shutil.rmtree(folder / "runs" / "tiny")
        for path in rng.sample(sorted((folder / "runs" / "cache").iterdir()), 4 if start != "a record" else 0):
            _harm(path, rng, flip=start == "damaged outputs")
    if nested:
        yield from _nested(folder, changes, rng)
    else:
        yield from _processes(folder, changes, rng)
    for name in {"tiny", changes.get("name", "tiny")}:
        yield from answered(limited("verify", folder / "runs" / name), (0,), f"verify {name} of two, from {start}")
    result = rerun(folder, small())
    yield from answered(result, (0,), "a third run")
    shutil.rmtree(folder / "runs" / "other", ignore_errors=True)
    wanted = {path.name for path in (clean / "cache").iterdir()}
    for path in (folder / "runs" / "cache").iterdir():
        if path.name not in wanted:
            shutil.rmtree(path)
    difference = same_bytes(folder / "runs", clean)
    if difference:
        yield WRONG, f"{difference} after two runs at once, from {start}"


def _harm(output: Path, rng: random.Random, *, flip: bool) -> None:
    if flip:
        path = rng.choice(sorted(output.iterdir()))
        path.write_bytes(flipped(path.read_bytes(), rng))
    else:
        shutil.rmtree(output)


def _processes(folder: Path, changes: Table, rng: random.Random) -> Faults:
    processes = []
    for name, table in (("a", small()), ("b", small(**changes))):
        spec = write_spec(folder / name, table)
        processes.append(started(CONTAINER + MAIN, "run", spec, "--out", folder / "runs", "--workers", 1))
        time.sleep(rng.choice([0.0, rng.random()]))
    for process in processes:
        yield from answered(ended(process), (0,), "one of two processes")


def _nested(folder: Path, changes: Table, rng: random.Random) -> Faults:
    """The second run starts and ends just before some renaming or removal of the first, or after all of them."""
    spec, moment, results = write_spec(folder / "b", small(**changes)), rng.randrange(1, 130), []

    def second() -> None:
        results.append(cli("run", spec, "--out", folder / "runs", "--workers", 1))

    with mock.patch.object(os, "getpid", lambda: 1), _before(moment, second):
        first = rerun(folder, small())
    if not results:  # the first has fewer renamings where most is there already
        second()
    yield from answered(first, (0,), f"the first of two, before its renaming {moment}")
    for result in results:
        yield from answered(result, (0,), f"the second of two, before renaming {moment} of the first")


@contextmanager
def _before(moment: int, act: Any) -> Iterator[None]:
    """Act once, before this call of `os.replace` or `os.unlink`; where a lock is held, a real second run would wait."""
    calls, locked, done = [0], [0], [False]
    lock = record.locked

    @contextmanager
    def counting(path: Path) -> Iterator[None]:
        with lock(path):
            locked[0] += 1
            try:
                yield
            finally:
                locked[0] -= 1

    def hooked(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] >= moment and not locked[0] and not done[0]:
                done[0] = True
                act()
            return function(*arguments, **keywords)

        return call

    places = ("expunge.base.record", "expunge.base.store", "expunge.pipeline.folder", "expunge.pipeline.outstanding")
    patches = [mock.patch(f"{place}.locked", counting) for place in places]
    patches += [mock.patch.object(os, name, hooked(getattr(os, name))) for name in ("replace", "unlink")]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


KIND = Kind("together", 40, (1,), undisturbed, _attempt)
