"""Run tasks in processes of this machine, one task at a time in each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from expunge.base.errors import RunError
from expunge.pipeline.executor import Begun, Computation, Executor, Finished, ready


@dataclass(frozen=True)
class ProcessesExecutor(Executor):
    """One process per worker. Only the main process handles Ctrl-C, and all workers end with it."""

    def run(self, tasks: Sequence[Computation], begun: Begun, finished: Finished) -> None:
        if not tasks:
            return
        # Spawned, not forked: a fork after torch has started its threads can hang.
        workers, spawn = min(self.workers, len(tasks)), multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, spawn, initializer=_start)
        try:
            _run(pool, workers, tasks, begun, finished)
        except BrokenProcessPool:
            raise RunError(
                "a worker was killed", where="workers", remedy="free memory or lower --workers, and run the same again"
            ) from None
        finally:
            _stop(pool)


def _run(
    pool: ProcessPoolExecutor, workers: int, tasks: Sequence[Computation], begun: Begun, finished: Finished
) -> None:
    waiting = {task.key: task for task in tasks}
    running: dict[Future[Any], Computation] = {}
    failure: BaseException | None = None
    while running or (waiting and failure is None):
        free = workers - len(running) if failure is None else 0
        for task in ready(waiting.values(), running.values())[:free]:
            del waiting[task.key]
            with _interrupts_blocked():
                running[pool.submit(task.call, *task.arguments)] = task
            begun(task)
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task, error = running.pop(future), future.exception()
            failure = failure or error
            if error is None:
                finished(task, future.result())
    if failure is not None:
        raise failure


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C while a worker may start: the worker inherits the blocked signal and never receives it."""
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


def _start() -> None:
    # Ctrl-C reaches the whole process group; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()


def _die_with_parent() -> None:
    """End this worker when its parent ends, even if the parent has ended already: a thread waits for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
