"""What is counted: attempts of each kind of harm, and six faults, of which there should be none."""

from __future__ import annotations

import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRONG = "wrong numbers"
BELIEVED = "believed forgeries"
TRACEBACK = "tracebacks"
HANG = "hangs"
CODE = "wrong exit codes"
OUTSIDE = "outside writes"
FAULTS = (WRONG, BELIEVED, TRACEBACK, HANG, CODE, OUTSIDE)
Faults = Iterator[tuple[str, str]]
"""Each fault of an attempt, and what was seen."""


@dataclass(frozen=True)
class Kind:
    """One kind of harm."""

    name: str
    full: int
    """Attempts of the full campaign."""
    small: tuple[int, ...]
    """Numbers of the attempts in CI."""
    prepare: Callable[[Path], Any]
    """Makes what all attempts start from, in a folder."""
    attempt: Callable[[Any, int, random.Random, Path], Iterable[tuple[str, str]]]
    """State, number, random numbers and an empty folder -> first the row that it counts for, then its faults."""


@dataclass
class Tally:
    """Attempts and faults by row of the table."""

    tried: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        rows = {row: {"tried": tried, **self.faults.get(row, {})} for row, tried in sorted(self.tried.items())}
        return {"rows": rows, "findings": self.findings, "seconds": round(self.seconds)}


def campaign(kind: Kind, seed: int, numbers: Iterable[int], say: Callable[[str], None] = print) -> Tally:
    """Make attempts, and count.

    Args:
        kind: The kind of harm.
        seed: With a number, it decides everything that is random about an attempt.
        numbers: The attempts to make.
        say: Called with each fault.
    """
    tally, start = Tally(), time.process_time()
    with tempfile.TemporaryDirectory(prefix=f"campaign-{kind.name}-", ignore_cleanup_errors=True) as outer:
        state = kind.prepare(_made(Path(outer) / "prepared"))
        for number in numbers:
            with tempfile.TemporaryDirectory(dir=outer, ignore_cleanup_errors=True) as folder:
                _attempt(kind, seed, number, state, Path(folder), tally, say)
    tally.seconds = time.process_time() - start
    return tally


def _attempt(
    kind: Kind, seed: int, number: int, state: Any, folder: Path, tally: Tally, say: Callable[[str], None]
) -> None:
    rng = random.Random(f"{kind.name} {seed} {number}")
    row = kind.name
    try:
        for what, text in kind.attempt(state, number, rng, folder):
            if what == "row":
                row = text
                tally.tried[row] += 1
                continue
            tally.faults.setdefault(row, Counter())[what] += 1
            repeat = f"python -m tests.reliability --kind {kind.name} --seed {seed} --only {number}"
            tally.findings.append(f"{what}: {row}: {text[-3000:]}\n    {repeat}")
            say(tally.findings[-1])
    except Exception:
        tally.tried[row] -= 1
        tally.findings.append(f"the campaign itself failed at {kind.name} {number}: {traceback.format_exc()}")
        say(tally.findings[-1])


def row(name: str) -> tuple[str, str]:
    """The row of the table that an attempt counts for; it comes first."""
    return "row", name


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
