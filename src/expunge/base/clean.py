"""What the cache of a folder for runs holds, and what no run needs. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from expunge.base.errors import ExpungeError, SpecError
from expunge.base.manifest import NAME, read_manifest
from expunge.base.spec import CACHE
from expunge.base.store import Store

EVENTS = "events.jsonl"
"""The log of a run: a line for each stage that it computed, with the stage's key."""
DAMAGED = "damaged"


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

    A finished run needs the outputs of all its stages, and an unfinished one those that it has computed so far.

    Raises:
        SpecError: There is no such folder.
    """
    if not out.is_dir():
        raise SpecError(f"there is no folder {out}", where="--out", allowed="a folder that 'expunge run' wrote")
    outputs: list[Held] = []
    for root in sorted({out / CACHE, *out.glob(f"*/{CACHE}")}):
        needed, store = set(_needed(root.parent)), Store(root)
        for folder in sorted(root.glob("[!.]*")):
            outputs.append(Held(store, folder.name, _kind(store, folder.name), _size(folder), folder.name in needed))
    return outputs


def remove(outputs: Iterable[Held]) -> None:
    """Remove outputs that no run needs, and what killed runs left in their caches a day ago or earlier.

    Raises:
        RunError: An output could not be removed.
    """
    for output in outputs:
        if not output.needed:
            output.store.discard(output.key)
        output.store.sweep()


def _needed(runs: Path) -> Iterator[str]:
    for folder in (path for path in runs.glob("*") if path.is_dir()):
        finished = 0.0
        try:
            yield from (stage.key for stage in read_manifest(folder).stages if stage.key)
            finished = int((folder / NAME).stat().st_mtime)
        except (ExpungeError, OSError):
            pass
        yield from _computed(folder / EVENTS, finished)


def _computed(events: Path, since: float) -> Iterator[str]:
    """Keys of the stages that a run has computed since it last finished."""
    try:
        lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            event = json.loads(line)
            if datetime.fromisoformat(event["at"]).timestamp() >= since:
                yield event["key"]
        except (ValueError, KeyError, TypeError, RecursionError):
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
