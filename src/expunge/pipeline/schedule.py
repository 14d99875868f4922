"""Run the missing stages as tasks of an executor. A task names a spec, the store and a stage; it contains no code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from expunge.base.errors import RunError
from expunge.base.memory import MemoryStore
from expunge.base.store import Store
from expunge.pipeline.beforehand import Beforehand
from expunge.pipeline.executor import Computation, Executor
from expunge.pipeline.input_files import UNCHANGED
from expunge.pipeline.outstanding import mended
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.references import Distinct
from expunge.pipeline.worker import Worker
from expunge.reporting.progress import Progress

Report = Callable[[Stage, dict[str, Any]], None]
"""Called with each stage that has finished, and its cost."""
Begun = Callable[[Stage], None]
"""Called with each stage that starts."""


def run_stages(
    plan: Plan,
    store: Store | MemoryStore,
    stages: Sequence[Stage],
    executor: Executor,
    report: Report,
    begun: Begun,
    say: Callable[[str], None] | None = None,
    beforehand: Beforehand | None = None,
) -> None:
    """Compute the stages that the store lacks, each after the stages that it needs.

    Damaged outputs, and what followed from them, are removed first and computed again.

    Args:
        plan: The plan of the stages.
        store: Where outputs go.
        stages: The stages to run, each after the stages that it needs.
        executor: Runs the stages. The numbers do not depend on it.
        report: Called with each stage that has finished.
        begun: Called with each stage that starts.
        say: Called with one line if outputs were damaged; writes it to stderr by default.
        beforehand: Stages for which all methods wait, and what is judged when they have finished.

    Raises:
        ExpungeError: The first failure. Stages that are running then finish first. The outputs of all finished stages
            are kept.
    """
    home = plan.home
    reasons, line = mended(plan, store, stages)
    if line is not None:
        (say or Progress().say)(line)
    first = beforehand.stages if beforehand is not None else []
    early = {stage.key for stage in first}
    missing = {stage.key: stage for stage in (*first, *stages) if stage.key in reasons}
    unjudged = early & missing.keys()
    waits = {key: (*stage.needs, *(early if stage.kind == "unlearn" else ())) for key, stage in missing.items()}
    tasks = [Computation(key, compute, (home, store, stage), waits[key]) for key, stage in missing.items()]
    distinct = Distinct(plan, store)
    for stage in stages:
        if stage.key not in missing:
            distinct.add(stage)

    def finished(stage: Stage, cost: dict[str, Any]) -> None:
        report(stage, cost)
        distinct.add(stage)
        if stage.key in unjudged:
            unjudged.remove(stage.key)
            if beforehand is not None and not unjudged:
                beforehand.judge()

    if beforehand is not None and first and not unjudged:
        beforehand.judge()
    with _known(home, Worker(plan, store)):
        executor.run(tasks, lambda task: begun(missing[task.key]), lambda task, cost: finished(missing[task.key], cost))


_known_worker: tuple[Any, Worker] | None = None
"""Parts, data and problems of the last plan of which this process ran stages, and the plan's home."""


def compute(home: Any, store: Store | MemoryStore, stage: Stage) -> dict[str, Any]:
    """Compute one stage, in any process; see `Worker.run`.

    Args:
        home: Makes the plan, see `Plan.home`.
        store: Holds the inputs, and takes the outputs.
        stage: The stage to compute.

    Raises:
        ExpungeError: The stage failed, or settings, code or data differ in this process.
    """
    global _known_worker
    if _known_worker is None or _known_worker[0] != home or _known_worker[1].store != store:
        _known_worker = home, Worker(home.plan(), store)
    worker = _known_worker[1]
    if stage.key not in worker.plan.by_key:
        finding = "this process plans the stage differently: code has changed since the run was planned"
        raise RunError(finding, where=stage.name, remedy=UNCHANGED)
    return worker.run(stage)


@contextmanager
def _known(home: Any, worker: Worker) -> Iterator[None]:
    """Inside, stages that run in this process use this worker, whose plan exists already."""
    global _known_worker
    before, _known_worker = _known_worker, (home, worker)
    try:
        yield
    finally:
        _known_worker = before
