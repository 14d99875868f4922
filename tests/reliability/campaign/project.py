"""What the campaign works on: a small run with outputs of every kind, the command line, and who is watched."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _within import within

from campaign.count import CODE, HANG, OUTSIDE, TRACEBACK, Faults
from helpers import Result, Table, cli, contents, finished, run, snapshot, tiny, write_spec

HERE = Path(__file__).parents[1]
LIMIT = 90
"""Seconds after which a command hangs: undisturbed, each takes less than five."""


def small(**changes: Any) -> Table:
    """Stages of every kind in about one second: statistics, originals, references, methods, attacks, audits."""
    table = tiny(
        data={"name": "digits", "train": 60, "test": 30},
        model={"name": "mlp", "widths": [8]},
        train={"epochs": 2, "learning_rate": 0.01},
        forget={"name": "hard_examples", "count": 8, "nets": 2},
        method=[{"name": "random_relabel", "epochs": 1}, {"name": "ssd"}],
        attack=[{"name": "relearn", "epochs": 1}],
        audit=[{"name": "loss"}],
        diagnostic=[{"name": "recommendation"}],
    )
    return table | changes


_made: dict[str, tempfile.TemporaryDirectory[str]] = {}
"""Spec -> the folder of its undisturbed run, which all kinds of harm share."""


def undisturbed(folder: Path, **changes: Any) -> Path:
    """The folder for runs after one run that nothing disturbed; no attempt changes it."""
    spec = repr(changes)
    if spec not in _made:
        _made[spec] = tempfile.TemporaryDirectory(prefix="campaign-undisturbed-")
        finished(run(small(**changes), Path(_made[spec].name) / "runs"))
    return Path(_made[spec].name) / "runs"


def copied(source: Path, folder: Path) -> Path:
    """A copy of a folder for runs, in a folder of an attempt."""
    return Path(shutil.copytree(source, folder / "runs", symlinks=True))


def limited(*arguments: object, seconds: int = LIMIT) -> Result | None:
    """A command in this process; none if it hangs."""
    try:
        with within(seconds):
            return cli(*arguments)
    except TimeoutError:
        return None


def rerun(folder: Path, table: Table, *arguments: object) -> Result | None:
    """`expunge run` in this process; none if it hangs."""
    try:
        with within(LIMIT):
            return run(table, folder / "runs", *arguments)
    except TimeoutError:
        return None


def answered(result: Result | None, codes: Sequence[int], what: str) -> Faults:
    """The faults of an answer whose exit code should be one of these."""
    if result is None:
        yield HANG, f"{what}: no answer within {LIMIT} s"
        return
    if "Traceback" in result.err or "this is a bug" in result.err:
        yield TRACEBACK, f"{what}: {result.err}"
    if result.code not in codes:
        yield CODE, f"{what}: exit code {result.code}, not {codes}: {result.err}"


def same_bytes(out: Path, clean: Path) -> str:
    """The first file that differs between two folders for runs; the empty string if none does."""
    ours, theirs = contents(out), contents(clean)
    ours = {name: data for name, data in ours.items() if not _is_temporary(name)}
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return f"{len(differing)} files differ, the first is {min(differing)}" if differing else ""


def _is_temporary(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


@contextlib.contextmanager
def watched(folder: Path, *written: str) -> Iterator[list[tuple[str, str]]]:
    """Inside, changes below a folder are noted as faults, except in what may be written."""
    faults: list[tuple[str, str]] = []
    before = _kept(folder, written)
    yield faults
    after = _kept(folder, written)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    faults += [(OUTSIDE, ", ".join(changed))] if changed else []


def _kept(folder: Path, written: Sequence[str]) -> dict[str, Any]:
    return {name: facts for name, facts in snapshot(folder).items() if Path(name).parts[0] not in written}


def outside(folder: Path) -> Path:
    """A folder of the user's, which nothing may change; links of a hostile record point to it."""
    place = folder / "outside"
    place.mkdir()
    for name in ("kept.txt", "scores.safetensors", "stage.json"):
        (place / name).write_text("mine")
    return place


def environment() -> dict[str, str]:
    """The environment of a process that finds expunge and the campaign."""
    paths = [
        str(HERE),
        str(HERE.parent),
        *os.environ.get("PYTHONPATH", "").split(os.pathsep),
        str(HERE.parents[1] / "src"),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


MAIN = "from expunge.cli import main\nif __name__ == '__main__':\n    main()"


def started(code: str, *arguments: object, **keywords: Any) -> subprocess.Popen[str]:
    """A Python process with this program, in a session of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(), start_new_session=True, **pipes, **keywords)


def ended(process: subprocess.Popen[str]) -> Result | None:
    """What a process left behind; none if it hangs, and is then killed."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return None
    return Result(process.returncode, out, err)


__all__ = ["Result", "Table", "cli", "contents", "finished", "run", "tiny", "write_spec"]
