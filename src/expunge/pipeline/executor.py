"""Where the tasks of a run are computed: a small contract, so that no other code handles processes.

An executor is a file in `pipeline/executors`, or an entry point of the group `expunge.executors`. The numbers do not
depend on the executor.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.part import Count, Part


@dataclass(frozen=True)
class Computation:
    """A function with its arguments, and the tasks that must finish before it. Executors with processes pickle it."""

    key: str
    call: Callable[..., Any]
    """A function of a module that can be imported."""
    arguments: tuple[Any, ...] = ()
    """Plain data: large data are in files, and code is named."""
    needs: tuple[str, ...] = ()
    """Keys of tasks that must finish first. A key that belongs to no task counts as finished."""


Begun = Callable[[Computation], object]
"""Called with each task that starts."""
Finished = Callable[[Computation, Any], object]
"""Called with each task that has finished, and its return value."""


@dataclass(frozen=True)
class Executor(Part):
    """A way to run tasks."""

    workers: Count = 1
    """How many tasks may run at the same time."""

    @abstractmethod
    def run(self, tasks: Sequence[Computation], begun: Begun, finished: Finished) -> None:
        """Run all tasks, each after the tasks that it needs. Both callbacks are called in this thread.

        Args:
            tasks: Ordered so that each task comes after the tasks that it needs.
            begun: Called before each task.
            finished: Called after each task.

        Raises:
            Exception: The exception of the first task that failed. No task starts after it. Tasks that are already
                running finish and are reported first.
        """


def executor_of(name: str | None, workers: int) -> Executor:
    """The executor with this name. By default, one worker runs in this process, and several workers in processes.

    Args:
        name: A registered name, or `module:Class` with a class derived from `Executor`.
        workers: How many tasks may run at the same time.

    Raises:
        SpecError: There is no executor with this name, or the object that `module:Class` names is none.
    """
    chosen = name or ("inline" if workers == 1 else "processes")
    executor = registry.load("executor", chosen, where="on")
    if not (isinstance(executor, type) and issubclass(executor, Executor)) or inspect.isabstract(executor):
        allowed = f"{', '.join(registry.names('executor'))}, or module:Class with a class derived from Executor"
        raise SpecError(f"{chosen!r} is not an executor", where="on", allowed=allowed)
    return executor.from_table({"workers": workers}, where="on")


def ready(waiting: Iterable[Computation], running: Iterable[Computation]) -> list[Computation]:
    """The waiting tasks that can start: no task that they need is waiting or running."""
    waiting = list(waiting)
    unfinished = {task.key for task in (*waiting, *running)}
    return [task for task in waiting if not unfinished.intersection(task.needs)]
