"""Runs, studies and notebooks that are killed at any moment, and at their first stage; then they are run again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign import toy
from campaign.count import CODE, HANG, WRONG, Faults, Kind, row
from campaign.project import (
    HERE,
    LIMIT,
    MAIN,
    Result,
    answered,
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

NOTEBOOK = (HERE / "campaign" / "toy.py").read_text()
STUDY = "campaign.toy:Slow"
STARTS = 3.0
"""Seconds in which a process starts, at most half of which is luck."""


@dataclass
class Clean:
    """What undisturbed runs give."""

    runs: Path
    study: Any
    notebook: str


def _prepare(folder: Path) -> Clean:
    finished = limited("study", STUDY, "--out", folder / "studied", "--workers", 1)
    assert finished is not None and finished.code == 0, finished
    return Clean(undisturbed(folder), _measured(folder / "studied"), toy.notebook(folder / "notes", 1))


def _measured(out: Path) -> Any:
    return json.loads((next((out / "studies").glob("*Slow-quick")) / "study.json").read_text())["measured"]


def _run(folder: Path, workers: int) -> subprocess.Popen[str]:
    spec = write_spec(folder, small())
    return started(MAIN, "run", spec, "--out", folder / "runs", "--workers", workers)


def _study(folder: Path, workers: int) -> subprocess.Popen[str]:
    return started(MAIN, "study", STUDY, "--out", folder / "runs", "--workers", workers)


def _notebook(folder: Path, workers: int) -> subprocess.Popen[str]:
    return started(NOTEBOOK, folder / "runs", workers)


STARTED: dict[str, Callable[[Path, int], subprocess.Popen[str]]] = {"run": _run, "study": _study, "notebook": _notebook}
OUTPUTS = {"run": "cache/*/stage.json", "study": "studies/*/seeds/*.json", "notebook": "cache/*/stage.json"}


def _attempt(clean: Clean, number: int, rng: random.Random, folder: Path) -> Faults:
    what, workers = (("run", "study", "notebook")[number // 2 % 3], number % 2 + 1)
    yield row(f"killed {what}, {workers} worker{'s' if workers > 1 else ''}")
    with watched(folder, "runs", "spec.toml") as changes:
        for _ in range(rng.choice([1, 1, 2])):
            process = STARTED[what](folder, workers)
            pattern, before = OUTPUTS[what], _outputs(folder, OUTPUTS[what])
            # At the first output of this process, at a later one, or at any time after it.
            wanted = before + rng.choice([1, 1, 2, 3, 5, 8])
            deadline = time.monotonic() + LIMIT
            while process.poll() is None and _outputs(folder, pattern) < wanted and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(rng.choice([0.0, 0.0, rng.random() * 0.2]))
            yield from _killed(process, everybody=rng.random() < 0.5)
    yield from changes
    yield from _again(clean, what, folder)


def _outputs(folder: Path, pattern: str) -> int:
    return len(list((folder / "runs").glob(pattern)))


def _killed(process: subprocess.Popen[str], everybody: bool) -> Faults:
    """Kill the process, or its whole session; its workers end by themselves."""
    if everybody:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    try:
        process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        yield HANG, "a killed process stays"
    if process.returncode not in (0, -signal.SIGKILL):
        yield CODE, f"exit code {process.returncode} before the kill: {process.stderr.read() if process.stderr else ''}"
    deadline = time.monotonic() + 20
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    if _alive(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
        yield HANG, "workers outlived the killed process by 20 s"
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _alive(session: int) -> bool:
    """Whether a process of the session runs; one that only waits to be collected does not."""
    for place in Path("/proc").iterdir():
        try:
            state, _, _, of, *_ = (
                (place / "stat").read_text().rpartition(")")[2].split() if place.name.isdigit() else "Z000"
            )
        except OSError:
            continue
        if state != "Z" and of == str(session):
            return True
    return False


def _again(clean: Clean, what: str, folder: Path) -> Faults:
    if what == "run":
        result = rerun(folder, small())
        yield from answered(result, (0,), "rerun")
        if result is not None and result.code == 0:
            difference = same_bytes(folder / "runs", clean.runs)
            yield from [(WRONG, difference)] if difference else []
            yield from answered(limited("verify", folder / "runs" / "tiny"), (0,), "verify")
    elif what == "study":
        result = limited("study", STUDY, "--out", folder / "runs", "--workers", 1)
        yield from answered(result, (0,), "study again")
        if result is not None and result.code == 0 and _measured(folder / "runs") != clean.study:
            yield WRONG, "the study has other numbers"
    else:
        result = ended(started(NOTEBOOK, folder / "runs", 1))
        yield from answered(result, (0,), "notebook again")
        if isinstance(result, Result) and result.code == 0 and result.out.strip() != clean.notebook:
            yield WRONG, "the notebook has other rows"


KIND = Kind("kills", 48, (0,), _prepare, _attempt)
