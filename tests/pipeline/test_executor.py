"""What runs tasks: their order, the first failure, the end of the parent, and an executor of another package."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from expunge.base.errors import RunError
from expunge.base.record import rows_to_text
from expunge.base.spec import parse
from expunge.base.store import Store
from expunge.pipeline.executor import Computation, Executor, executor_of
from expunge.pipeline.plan import Plan
from expunge.pipeline.run import run as run_spec
from expunge.pipeline.schedule import run_stages
from helpers import cli, finished, tiny, write_spec

EXECUTORS = [executor_of(None, 1), executor_of(None, 2)]
BACKWARDS = """
from dataclasses import dataclass
from expunge.pipeline.executor import Executor, ready

@dataclass(frozen=True)
class Backwards(Executor):
    def run(self, tasks, begun, finished):
        waiting = list(tasks)
        while waiting:
            task = ready(waiting, [])[-1]
            waiting.remove(task)
            begun(task)
            finished(task, task.call(*task.arguments))
"""


def wrote(folder: Path, name: str, needs: Sequence[str], seconds: float = 0.0) -> list[str]:
    """Which of the files it needs were there, after some time."""
    found = [need for need in needs if (folder / need).exists()]
    time.sleep(seconds)
    (folder / name).touch()
    return found


def failed(folder: Path, name: str) -> None:
    raise RunError("it failed", where=name)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("executor", EXECUTORS, ids=["inline", "processes"])
def test_a_task_runs_after_those_that_it_needs(executor: Executor, tmp_path: Path) -> None:
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c", "elsewhere")}
    tasks = [Computation(k, wrote, (tmp_path, k, n, 0.05 if k == "a" else 0.0), n) for k, n in needs.items()]
    begun, finished = list[str](), dict[str, Any]()
    executor.run(tasks, lambda task: begun.append(task.key), lambda task, found: finished.update({task.key: found}))
    assert sorted(begun) == sorted(finished) == sorted(needs)
    assert finished == {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def test_after_a_failure_nothing_begins_and_what_runs_comes_to_its_end(tmp_path: Path) -> None:
    slow = Computation("slow", wrote, (tmp_path, "slow", (), 1.0))
    later = [Computation(k, wrote, (tmp_path, k, ()), ()) for k in ("e", "f")]
    finished = list[str]()
    with pytest.raises(RunError, match="bad: it failed"):
        executor_of(None, 2).run(
            [slow, Computation("bad", failed, (tmp_path, "bad")), *later],
            lambda task: None,
            lambda task, found: finished.append(task.key),
        )
    assert finished == ["slow"] and {path.name for path in tmp_path.iterdir()} == {"slow"}


def test_a_killed_worker_has_a_message() -> None:
    with pytest.raises(RunError, match=r"a worker was killed.*--workers"):
        executor_of(None, 2).run([Computation("a", killed)], lambda task: None, lambda task, found: None)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from expunge.pipeline.executor import Computation, executor_of\n"
        "if __name__ == '__main__':\n"
        "    tasks = [Computation(str(i), time.sleep, (300,)) for i in range(2)]\n"
        "    executor_of(None, 2).run(tasks, lambda task: print(task.key, flush=True), print)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout is not None
    for _ in range(2):
        parent.stdout.readline()
    time.sleep(2)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    # A pipe that nobody holds any more ends: all workers are gone.
    os.set_blocking(parent.stdout.fileno(), False)
    while parent.stdout.read() != b"":
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.05)
    parent.stdout.close()


def test_what_crosses_processes_is_small(tmp_path: Path) -> None:
    tasks = list[Computation]()

    class Looking(Executor):
        def run(self, given: Sequence[Computation], begun: Any, finished: Any) -> None:
            tasks.extend(given)

    plan = Plan(parse(tiny(), tmp_path))
    run_stages(plan, Store(tmp_path), plan.stages, Looking(), lambda stage, cost: None, lambda stage: None)
    assert len(tasks) == 30 and max(len(pickle.dumps(task)) for task in tasks) < 3000


def test_an_executor_of_another_package_gives_the_same_rows(install: Any, tmp_path: Path) -> None:
    install(BACKWARDS, {"Backwards": "expunge.executors"})
    spec = parse(tiny(), tmp_path)
    usual, other = run_spec(spec, tmp_path / "usual"), run_spec(spec, tmp_path / "other", on="backwards", workers=2)
    assert rows_to_text(usual.rows) == rows_to_text(other.rows)

    def order(folder: Path) -> list[str]:
        lines = (folder / "events.jsonl").read_text().splitlines()
        return [line.partition('"what"')[2].partition('"gradients"')[0] for line in lines]

    usual_order, other_order = order(usual.folder), order(other.folder)
    assert usual_order != other_order and sorted(usual_order) == sorted(other_order)


BESIDE = (
    BACKWARDS
    + """

def function(tasks):
    return None

@dataclass(frozen=True)
class Half(Executor):
    pass

@dataclass(frozen=True, kw_only=True)
class Rented(Backwards):
    place: str
"""
)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A spec with a module of executors beside it."""
    (tmp_path / "mine.py").write_text(BESIDE)
    return write_spec(tmp_path, tiny(seeds=[0], attack=[]))


@pytest.mark.parametrize("name", ["inline", "mine:Backwards"])
def test_run_takes_an_executor_by_name(name: str, beside: Path, tmp_path: Path) -> None:
    usual, other = (
        json.loads(finished(cli("run", beside, "--out", tmp_path / folder, "--json", *option)).out)["rows"]
        for folder, option in (("usual", ["--workers", 1]), ("other", ["--workers", 2, "--on", name]))
    )
    assert usual == other


@pytest.mark.parametrize("verb", ["run", "run --dry-run", "study"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ray", "on: unknown executor 'ray'; allowed: inline, processes, or your own code as module:function"),
        ("mine:function", "'mine:function' is not an executor"),
        ("mine:Half", "'mine:Half' is not an executor"),
        ("mine:Rented", "on: 'place' is missing"),
        ("mine:Missing", "cannot import 'mine:Missing'"),
    ],
)
def test_what_is_no_executor_is_refused_before_anything_is_written(
    verb: str, name: str, words: str, beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    word, *options = verb.split()
    result = cli(word, "dormant" if word == "study" else beside, "--out", tmp_path / "runs", "--on", name, *options)
    assert result.code == 2 and words in result.message()
    assert not (tmp_path / "runs").exists()
