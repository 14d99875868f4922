"""Run the stages that are missing, as tasks of an executor. A task is the spec, the store and a stage, and no code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from expunge.base.memory import MemoryStore
from expunge.base.record import Store
from expunge.base.registry import add_search_path
from expunge.base.spec import Spec
from expunge.pipeline.executor import Executor, Task
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stages._worker import Worker

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
    missing = {stage.key: stage for stage in stages if not store.has(stage.key)}
    tasks = [Task(key, compute, (plan.spec, store, stage), stage.needs) for key, stage in missing.items()]
    with _known(Worker(plan, store)):
        executor.run(tasks, lambda task: begun(missing[task.key]), lambda task, cost: report(missing[task.key], cost))


_worker: Worker | None = None
"""What this process has made of the last spec that it ran stages of: plan, data and problems."""


def compute(spec: Spec, store: Store | MemoryStore, stage: Stage) -> dict[str, Any]:
    """Compute one stage, in whichever process; see `Worker.run`."""
    global _worker
    if _worker is None or _worker.plan.spec != spec or _worker.store != store:
        add_search_path(spec.folder)
        _worker = Worker(Plan(spec), store)
    return _worker.run(stage)


@contextmanager
def _known(worker: Worker) -> Iterator[None]:
    """For stages that run in this process: the plan is made already."""
    global _worker
    before, _worker = _worker, worker
    try:
        yield
    finally:
        _worker = before
