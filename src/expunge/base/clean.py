"""What the cache of a folder for runs holds, and what no run needs. No torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from expunge.base.errors import ExpungeError, SpecError
from expunge.base.manifest import NAME, read_manifest
from expunge.base.reading import read_inside
from expunge.base.spec import CACHE
from expunge.base.store import Store

EVENTS = "events.jsonl"
"""The log of a run: a line for each stage that it computed, with the stage's key."""
DAMAGED = "damaged"
_KEY = re.compile("[0-9a-f]{32}")
"""Names of outputs. Anything else in a cache is somebody else's, and stays."""


@dataclass(frozen=True)
class Held:
    """An output in a cache."""

    store: Store
    key: str
    kind: str
    """The kind of its stage; `damaged` if its facts cannot be read."""
    size: int
    """Bytes."""
    needed: bool
    """Whether a run in the same folder for runs names it."""


def held(out: Path) -> list[Held]:
    """Every output in the caches of a folder for runs, studies included.

    Only what has the name of an output counts, and no link is followed into a folder elsewhere, except from `out/cache`
    itself. A finished run needs the outputs of all its stages, and an unfinished one those that it has computed so far.

    Raises:
        SpecError: There is no such folder.
    """
    if not out.is_dir():
        raise SpecError(f"there is no folder {out}", where="--out", allowed="a folder that 'expunge run' wrote")
    outputs: list[Held] = []
    inner = (root for root in out.glob(f"*/{CACHE}") if not root.is_symlink() and not root.parent.is_symlink())
    for root in sorted({out / CACHE, *inner}):
        needed, store = set(_needed(root.parent)), Store(root)
        for folder in sorted(path for path in root.glob("*") if _KEY.fullmatch(path.name)):
            outputs.append(Held(store, folder.name, _kind(store, folder.name), _size(folder), folder.name in needed))
    return outputs


def remove(outputs: Iterable[Held]) -> None:
    """Remove outputs that no run needs, and what killed runs left in their caches a day ago or earlier.

    Raises:
        RunError: An output could not be removed.
    """
    outputs = list(outputs)
    for output in outputs:
        if not output.needed:
            output.store.discard(output.key)
    for store in {output.store for output in outputs}:
        store.sweep()


def _needed(runs: Path) -> Iterator[str]:
    for folder in (path for path in runs.glob("*") if path.is_dir()):
        finished = 0.0
        try:
            yield from (stage.key for stage in read_manifest(folder).stages if stage.key)
            finished = int((folder / NAME).stat().st_mtime)
        except (ExpungeError, OSError):
            pass
        yield from _computed(folder, finished)


def _computed(folder: Path, since: float) -> Iterator[str]:
    """Keys of the stages that a run has computed since it last finished."""
    try:
        lines = read_inside(folder, EVENTS).decode().splitlines()
    except (ExpungeError, ValueError):
        return
    for line in lines:
        try:
            event = json.loads(line)
            if datetime.fromisoformat(event["at"]).timestamp() >= since:
                yield str(event["key"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue


def _kind(store: Store, key: str) -> str:
    try:
        # The name of a stage is "seed 0: audit original loss", or without the seed.
        return str(store.facts(key)["stage"]).rpartition(": ")[2].partition(" ")[0]
    except ExpungeError:
        return DAMAGED


def _size(place: Path) -> int:
    files = [Path(folder) / name for folder, _, names in os.walk(place) for name in names]
    return sum(file.lstat().st_size for file in files or [place] if not file.is_dir())
