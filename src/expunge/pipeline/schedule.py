"""Run the stages that are missing, as tasks of an executor. A task names a spec, the store and a stage: no code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from expunge.base.errors import RunError
from expunge.base.memory import MemoryStore
from expunge.base.record import Store
from expunge.pipeline.executor import Computation, Executor
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.worker import Worker

Report = Callable[[Stage, dict[str, Any]], None]
"""Called with each stage that has finished, and its cost."""
Begun = Callable[[Stage], None]
"""Called with each stage that begins."""


def run_stages(
    plan: Plan, store: Store | MemoryStore, stages: Sequence[Stage], executor: Executor, report: Report, begun: Begun
) -> None:
    """Compute those of the stages that the store lacks, each after those that it needs.

    Args:
        plan: What the stages belong to.
        store: Where outputs go.
        stages: Which of them to run, in an order in which they can be.
        executor: Where they run. The numbers do not depend on it.
        report: Called with each stage that has finished.
        begun: Called with each stage that begins.

    Raises:
        ExpungeError: The first failure; stages that finished before it are kept, and so are those that were running
            beside it, which come to their end first.
    """
    home = plan.home
    missing = {stage.key: stage for stage in stages if not store.has(stage.key)}
    tasks = [Computation(key, compute, (home, store, stage), stage.needs) for key, stage in missing.items()]
    with _known(home, Worker(plan, store)):
        executor.run(tasks, lambda task: begun(missing[task.key]), lambda task, cost: report(missing[task.key], cost))


_known_worker: tuple[Any, Worker] | None = None
"""What this process has made of the last plan that it ran stages of: parts, data and problems; and their home."""


def compute(home: Any, store: Store | MemoryStore, stage: Stage) -> dict[str, Any]:
    """Compute one stage, in whichever process; see `Worker.run`.

    Args:
        home: What the plan is made from, see `Plan.home`.
        store: Where inputs are and outputs go.
        stage: Which one.

    Raises:
        ExpungeError: The stage failed, or it follows from other settings, code or data here.
    """
    global _known_worker
    if _known_worker is None or _known_worker[0] != home or _known_worker[1].store != store:
        _known_worker = home, Worker(home.plan(), store)
    worker = _known_worker[1]
    if stage.key not in worker.plan.by_key:
        remedy = "leave code and data alone while it runs, and run the same again"
        raise RunError("this process plans the stage differently", where=stage.name, remedy=remedy)
    return worker.run(stage)


@contextmanager
def _known(home: Any, worker: Worker) -> Iterator[None]:
    """For stages that run in this process: the plan is made already."""
    global _known_worker
    before, _known_worker = _known_worker, (home, worker)
    try:
        yield
    finally:
        _known_worker = before
