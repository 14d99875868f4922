"""Run the stages that are missing: in this process, or one process per worker with one stage at a time in each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from expunge.base.errors import RunError
from expunge.base.record import Store
from expunge.base.spec import Spec
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stages._worker import Worker

Report = Callable[[Stage, dict[str, Any]], None]
"""Called with each stage that has finished, and its cost."""
Begun = Callable[[Stage], None]
"""Called with each stage that begins."""


def _unheard(stage: Stage) -> None:
    """Nobody wants to know what begins."""


def run_missing(plan: Plan, store: Store, workers: int, report: Report, begun: Begun = _unheard) -> None:
    """Compute every stage of the plan that the store lacks; see `run_stages`."""
    run_stages(plan, store, plan.stages, workers, report, begun)


def run_stages(
    plan: Plan, store: Store, stages: Sequence[Stage], workers: int, report: Report, begun: Begun = _unheard
) -> None:
    """Compute those of the stages that the store lacks, each after those that it needs.

    Args:
        plan: What the stages belong to.
        stages: Which of them to run, in an order in which they can be.
        store: Where outputs go.
        workers: Processes; 1 runs in this one. The numbers do not depend on it.
        report: Told of each stage that has finished.
        begun: Told of each stage that begins.

    Raises:
        ExpungeError: The first failure; stages that finished before it are kept, and so are those that were running
            beside it, which come to their end first.
    """
    missing = {stage.key: stage for stage in stages if not store.has(stage.key)}
    if workers == 1:
        worker = Worker(plan, store)
        for stage in missing.values():
            begun(stage)
            report(stage, worker.run(stage))
    elif missing:
        _in_processes(plan, store, missing, min(workers, len(missing)), report, begun)


def _in_processes(
    plan: Plan, store: Store, missing: dict[str, Stage], workers: int, report: Report, begun: Begun
) -> None:
    # Spawned, not forked: a fork after torch has started its threads can hang.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(plan.spec, store)
    )
    running: dict[Future[dict[str, Any]], Stage] = {}
    waiting, failure = dict(missing), None
    try:
        while running or (waiting and failure is None):
            for stage in _ready(waiting, running, workers) if failure is None else ():
                with _unheard_interrupts():
                    running[pool.submit(_run, waiting.pop(stage.key))] = stage
                begun(stage)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                stage, error = running.pop(future), future.exception()
                failure = failure or error
                if error is None:
                    report(stage, future.result())
        if failure is not None:
            raise failure
    except BrokenProcessPool:
        raise RunError(
            "a worker was killed", where="workers", remedy="free memory or lower --workers, and run the same again"
        ) from None
    finally:
        _stop(pool)


def _ready(waiting: dict[str, Stage], running: dict[Future[Any], Stage], workers: int) -> list[Stage]:
    """Stages to start now: nothing that they need is still to come, and a worker is free."""
    to_come = waiting.keys() | {stage.key for stage in running.values()}
    free = workers - len(running)
    return [stage for stage in waiting.values() if not to_come.intersection(stage.needs)][:free]


@contextmanager
def _unheard_interrupts() -> Iterator[None]:
    """Put off Ctrl-C while a worker may be started: it inherits the mask and so is deaf from its first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


_worker: Worker | None = None


def _start(spec: Spec, store: Store) -> None:
    global _worker
    # Ctrl-C reaches the whole process group; only the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    from expunge.base.registry import add_search_path

    add_search_path(spec.folder)
    _worker = Worker(Plan(spec), store)


def _run(stage: Stage) -> dict[str, Any]:
    assert _worker is not None
    return _worker.run(stage)


def _die_with_parent() -> None:
    """A worker whose parent was killed must not go on: a thread waits for the parent's end, now or long ago."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
