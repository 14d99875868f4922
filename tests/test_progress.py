"""What a person sees of a run, and what was expected of it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from expunge.base.spec import parse
from expunge.base.store import Store
from expunge.pipeline.forecast import forecast, gradients
from expunge.pipeline.plan import Plan
from expunge.pipeline.run import run as run_spec
from expunge.reporting.progress import Progress, clock_text
from helpers import cli, finished, run, tiny, write_spec


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_plain_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream, live=False, clock=Clock())
    progress.start(3, {"a": 1.0, "b": 1.0}, workers=1)
    progress.finished("a", "train", 1.0)
    assert stream.getvalue() == "1 of 3 stages are already done\n[2/3] train  1.0 s\n"


def test_a_terminal_gets_one_line_that_is_cleared_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, live=True, clock=clock)
    progress.start(2, {"a": 1.0, "b": 1.0}, workers=1)
    clock.now = 120.0
    progress.finished("a", "train", 120.0)
    progress.finished("b", "audit", 1.0)
    assert "\n" not in stream.getvalue()
    assert "about 2 min left" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def last(stream: io.StringIO) -> str:
    return stream.getvalue().rpartition("\r")[2].removesuffix("\x1b[K")


def test_the_live_line_names_what_runs_from_its_beginning_and_the_time_before_it() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, live=True, clock=clock)
    progress.start(3, {"a": 1.0, "b": 1.0, "c": 1.0}, workers=2)
    progress.begun("a", "seed 0: original")
    assert last(stream) == "[0/3]  seed 0: original"
    progress.begun("b", "seed 1: original")
    assert last(stream) == "[0/3]  seed 0: original and 1 more"
    clock.now = 120.0
    progress.finished("a", "seed 0: original", 120.0)
    assert last(stream) == "[1/3]  about 4 min left  seed 1: original"
    progress.clear()
    assert last(stream) == ""


def test_a_log_says_the_remaining_time_every_so_often() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, live=False, clock=clock)
    progress.start(60, {str(i): 1.0 for i in range(60)}, workers=1)
    for i in range(60):
        clock.now += 90 if i == 29 else 1
        progress.begun(str(i), "train")
        progress.finished(str(i), "train", 1.0)
    lines = stream.getvalue().splitlines()
    # 25 stages, then a slow one, then 25 more; one line per stage.
    assert [i for i, line in enumerate(lines, 1) if line.endswith("left")] == [25, 30, 55]
    assert len(lines) == 60


class Told(Progress):
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), live=False)
        self.told: list[tuple[str, str]] = []

    def begun(self, key: str, name: str) -> None:
        self.told.append(("begun", key))

    def finished(self, key: str, name: str, seconds: float) -> None:
        self.told.append(("finished", key))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_tells_what_begins_before_it_has_finished(workers: int, tmp_path: Path) -> None:
    progress = Told()
    run_spec(parse(tiny(seeds=[0]), tmp_path), tmp_path / "runs", workers=workers, progress=progress)
    done = [key for what, key in progress.told if what == "finished"]
    assert done
    assert all(progress.told.index(("begun", key)) < progress.told.index(("finished", key)) for key in done)


def test_remaining_time_is_corrected_by_what_was_seen() -> None:
    """Expected 1 s each. One after 10 s on one worker: ten times slower, 20 s for the other two.

    On two workers 10 s are 20 s of work for what was expected to be one: twenty times slower, 40 s, shared by two.
    """
    for workers, expected in ((1, 20.0), (2, 20.0)):
        clock = Clock()
        progress = Progress(io.StringIO(), live=False, clock=clock)
        progress.start(3, {"a": 1.0, "b": 1.0, "c": 1.0}, workers)
        clock.now = 10.0
        progress.finished("a", "", 10.0)
        assert progress.remaining() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (40, "40 s"), (100, "2 min"), (3600, "60 min"), (7800, "2 h 10 min")]
)
def test_clock_text(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_forecast_counts_the_gradients_that_stages_then_take(tmp_path: Path) -> None:
    """For what takes passes over its data only, the expectation is exact up to the forget set's size."""
    table = tiny()
    finished(run(table, tmp_path))
    plan, store = Plan(parse(table, tmp_path)), Store(tmp_path / "cache")
    assert all(f.done and f.seconds == 0 for f in forecast(plan, store))
    share = len(plan.problem(0, {}).forget) / len(plan.data.train)
    for stage in plan.stages:
        taken = store.facts(stage.key)["gradients"]
        if stage.kind in ("original", "reference", "attack"):
            assert gradients(plan, stage) * (1 - share) <= taken <= gradients(plan, stage)


@pytest.mark.parametrize("name", ["gradient_ascent", "task_negation", "delete", "bad_teacher", "scrub"])
def test_a_method_is_foretold_by_what_it_says_of_itself(name: str, tmp_path: Path) -> None:
    plan = Plan(parse(tiny(method=[{"name": name}]), tmp_path))
    problem, [stage] = plan.problem(0, {}), [s for s in plan.stages if s.kind == "unlearn" and s.seed == 0]
    assert gradients(plan, stage) == plan.methods[name].expected_gradients(len(problem.retain), len(problem.forget))


def test_sizes_of_a_task_that_measures_first_are_known_before(tmp_path: Path) -> None:
    plan = Plan(parse(tiny(forget={"name": "hard_examples", "count": 7}), tmp_path))
    assert plan.sizes == (113, 7)


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tiny())
    result = finished(cli("run", str(spec), "--out", str(tmp_path / "runs"), "--dry-run"))
    assert "stages to run, about" in result.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["whole", "half done", "many seeds", "with workers"])
def test_a_dry_run_answers_first_and_lists_stages_on_request(tmp_path: Path, name: str) -> None:
    table, runs = tiny(seeds=list(range(8 if name == "many seeds" else 2))), tmp_path / "runs"
    if name == "half done":
        finished(run(tiny(seeds=[0]), runs))
        table["name"] = "more"
    workers = 3 if name == "with workers" else 1
    dry = ("run", str(write_spec(tmp_path, table)), "--out", str(runs), "--dry-run", "--workers", str(workers))
    first, *rest = finished(cli(*dry)).out.splitlines()
    answer = re.fullmatch(r"(\d+) of (\d+) stages to run, about .* with \d workers?", first)
    assert answer is not None, first
    left, stages = int(answer[1]), int(answer[2])
    memory, kinds = [line for line in rest if line.startswith("Memory: ")], [line for line in rest if line[0] == " "]
    assert len(memory) == 1 and len(rest) == 1 + len(kinds) < 10
    assert sum(int(line.split()[0]) for line in kinds) == left <= stages
    listed = finished(cli(*dry, "--stages")).out.splitlines()
    assert listed[0] == first and len(listed) == 1 + len(rest) + stages
    assert (left < stages) == (name == "half done")


def test_dry_run_says_where_nothing_is_left_and_refuses_what_a_run_would(tmp_path: Path) -> None:
    spec, runs = write_spec(tmp_path, tiny()), tmp_path / "runs"
    dry = ("run", str(spec), "--out", str(runs), "--dry-run", "--workers", "1")
    assert "with 1 worker\n" in finished(cli(*dry)).out
    finished(run(tiny(), runs))
    assert "nothing is left to do" in finished(cli(*dry)).out
    held = (runs / "tiny" / "spec.json").read_bytes()
    refused = cli(*dry, "--set", "train.epochs=11")
    assert refused.code == 2
    assert "train.epochs was 6, is 11" in refused.err
    assert (runs / "tiny" / "spec.json").read_bytes() == held
