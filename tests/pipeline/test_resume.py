"""Killed, interrupted, run again: the same bytes in the end, nothing computed twice, nobody left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from expunge.base.store import Store
from helpers import Table, contents, finished, run, snapshot, stages_done, temporaries, tiny, write_spec

COMMAND = (sys.executable, "-c", "from expunge.cli import main; main()")
SECONDS = 60
"""No single wait is longer; all are over in a few seconds."""


def longer(**changes: object) -> Table:
    """Enough stages that a random moment falls between two of them."""
    methods = [{"name": "random_relabel", "epochs": 2}, {"name": "retrain"}]
    return tiny(seeds=[0, 1, 2], method=methods, audit=[{"name": "loss"}, {"name": "distance"}], **changes)


def whole(out: Path) -> dict[str, bytes]:
    """The contents of all files that have their final name."""
    return {name: data for name, data in contents(out).items() if "/." not in f"/{name}"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for runs after the longer spec, in one process."""
    out = tmp_path_factory.mktemp("undisturbed") / "runs"
    finished(run(longer(), out))
    return out


@dataclass
class Process:
    """`expunge run` with two workers, in a session of its own."""

    popen: subprocess.Popen[str]

    @classmethod
    def start(cls, out: Path, table: Table) -> Process:
        spec = write_spec(out.parent, table)
        arguments = [*COMMAND, "run", str(spec), "--out", str(out), "--workers", "2"]
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, start_new_session=True))

    def wait_for_stages(self, count: int) -> None:
        """Read progress until so many stages were done by this run, or it ended."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            count -= line.startswith("[")
            if count <= 0:
                return

    def wait(self, seconds: float, out: Path) -> None:
        """Until so much time has passed, or one more stage is done than were before, whichever comes first."""
        until, before = time.monotonic() + seconds, len(stages_done(out))
        while time.monotonic() < until and len(stages_done(out)) == before:
            time.sleep(0.01)

    def wait_for_workers(self, count: int) -> None:
        """Until so many processes are there, workers in the middle of their imports among them."""
        until = time.monotonic() + SECONDS
        while len(self.members()) <= count and self.popen.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)

    def members(self) -> list[int]:
        """Living processes of the session."""
        return [pid for pid in _processes() if _session(pid) == self.popen.pid]

    def end(self, kill: int | None = None) -> tuple[int, str]:
        """The exit code and the rest of the messages, once everybody is gone; after sending a signal if asked to.

        A signal for all stands for Ctrl-C in a terminal; SIGKILL goes to the first process only.
        """
        if kill == signal.SIGKILL:
            self.popen.kill()
        elif kill is not None:
            os.killpg(self.popen.pid, kill)
        # Not `communicate`: a worker that outlives its parent would keep the pipes open.
        code = self.popen.wait(SECONDS)
        # A worker that is still importing torch hears of its parent's end only afterwards.
        until = time.monotonic() + 20
        while self.members():
            assert time.monotonic() < until, f"{len(self.members())} processes outlive the run"
            time.sleep(0.02)
        assert self.popen.stderr is not None and self.popen.stdout is not None
        rest = self.popen.stderr.read()
        self.popen.stderr.close()
        self.popen.stdout.close()
        return code, rest


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _session(pid: int) -> int | None:
    """The session of a process that is neither gone nor only waiting to be collected."""
    try:
        state, _, _, session, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(session)


def aged(out: Path, seconds: float) -> None:
    """Make temporary files and folders, and what is in them, look as if they were last written so long ago."""
    for path in temporaries(out):
        for written in (path, *path.rglob("*")):
            os.utime(written, (time.time() - seconds,) * 2)


def test_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    alone, together = tmp_path / "1" / "runs", tmp_path / "2" / "runs"
    finished(run(tiny(), alone))
    code, messages = Process.start(together, tiny()).end()
    assert code == 0, messages
    assert contents(together) == contents(alone)


def test_killed_four_times_and_run_again(undisturbed: Path, tmp_path: Path) -> None:
    out, draw = tmp_path / "runs", random.Random(11)
    # Half of the runs die after a few more stages, half in some share of the time that the first one takes to start, or
    # with their first stage where they start sooner than that: together at most 20 of 75 stages.
    moments: list[int | float] = [draw.uniform(0, 1) for _ in range(2)] + [draw.randint(2, 9)]
    draw.shuffle(moments)
    done, start, lead = set[str](), time.monotonic(), 0.0
    for moment in [1, *moments]:
        process = Process.start(out, longer())
        if isinstance(moment, float):
            process.wait(moment * lead, out)
        else:
            process.wait_for_stages(moment)
            lead = lead or time.monotonic() - start
            time.sleep(draw.uniform(0, 0.05))
        code, messages = process.end(signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0), messages
        assert "Traceback" not in messages
        kept = stages_done(out)
        assert done <= kept
        done = kept
        # Whatever has its final name is whole.
        expected = contents(undisturbed)
        found = whole(out)
        assert found.items() <= expected.items()
    assert len(done) < len(stages_done(undisturbed)), "every moment came too late"
    code, messages = Process.start(out, longer()).end()
    assert code == 0, messages
    assert f"{len(done)} of " in messages
    assert whole(out) == contents(undisturbed)
    aged(out, 25 * 3600)
    finished(run(longer(), out))
    assert contents(out) == contents(undisturbed) and temporaries(out) == []


def test_ctrl_c_in_the_middle(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    process = Process.start(out, longer())
    process.wait_for_stages(5)
    code, messages = process.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in messages and "interrupted" in messages and "run the same command again" in messages
    assert 5 <= len(stages_done(out)) < len(stages_done(undisturbed))
    before = snapshot(out / "cache")
    finished(run(longer(), out))
    after = snapshot(out / "cache")
    assert {name: after.get(name) for name in before if "/." not in f"/{name}"} == {
        name: entry for name, entry in before.items() if "/." not in f"/{name}"
    }
    assert whole(out) == contents(undisturbed)


def test_ctrl_c_while_workers_start(tmp_path: Path) -> None:
    process = Process.start(tmp_path / "runs", tiny())
    process.wait_for_workers(2)
    time.sleep(0.3)
    code, messages = process.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in messages and messages.count("interrupted") == 1


def test_ctrl_c_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, put = tmp_path / "runs", Store.put
    stages = iter(range(100))

    def interrupted(self: Store, *arguments: object) -> None:
        if next(stages) == 7:
            raise KeyboardInterrupt
        put(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "put", interrupted)
    result = run(tiny(), out)
    assert result.code == 130 and "interrupted" in result.err and "Traceback" not in result.err
    assert len(stages_done(out)) == 7 and temporaries(out) == []
    monkeypatch.undo()
    assert "7 of 30 stages are already done" in finished(run(tiny(), out)).err


def test_what_the_dead_left_is_swept_a_day_later_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    """No process id says whether another host is writing, so even a file with the id of a dead process stays."""
    out = tmp_path / "runs"
    finished(run(tiny(), out))
    before = set(out.rglob("*"))
    found = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for token in (found.stdout.strip(), str(os.getpid()), "0123456789abcdef"):
        folder = out / "cache" / f".abc.{token}"
        folder.mkdir()
        (folder / f".scores.safetensors.{token}.tmp").write_text("half")
        (out / "tiny" / "scores" / f".a.safetensors.{token}.tmp").write_text("half")
    left = set(out.rglob("*")) - before
    finished(run(tiny(), out))
    assert set(out.rglob("*")) - before == left
    aged(out, 23 * 3600)
    finished(run(tiny(), out))
    assert set(out.rglob("*")) - before == left
    aged(out, 25 * 3600)
    finished(run(tiny(), out))
    assert set(out.rglob("*")) == before
