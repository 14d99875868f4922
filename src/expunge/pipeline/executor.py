"""Where the tasks of a run are computed: a small contract, so that the rest knows of no processes.

An executor is a file in `pipeline/executors`, or an entry point of the group `expunge.executors`. The numbers do not
depend on which one runs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.part import Count, Part


@dataclass(frozen=True)
class Computation:
    """A function with its arguments, and what must be done before it; all of it is pickled where processes run it."""

    key: str
    call: Callable[..., Any]
    """Of a module that can be imported."""
    arguments: tuple[Any, ...] = ()
    """Plain data: what is large lies in files, and what is code is named."""
    needs: tuple[str, ...] = ()
    """Keys of tasks that must have finished; keys of no task are taken to be done."""


Begun = Callable[[Computation], object]
"""Called with each task that begins."""
Finished = Callable[[Computation, Any], object]
"""Called with each task that has finished, and what it returned."""


@dataclass(frozen=True)
class Executor(Part):
    """A way to run tasks."""

    workers: Count = 1
    """How many tasks may run side by side."""

    @abstractmethod
    def run(self, tasks: Sequence[Computation], begun: Begun, finished: Finished) -> None:
        """Run all tasks, each after those that it needs; both callbacks are called in this thread.

        Args:
            tasks: In an order in which they can be run one by one.
            begun: Called before each task.
            finished: Called after each task.

        Raises:
            Exception: What the first task that failed raised. No task begins after it; those that run beside it come to
                their end and are reported first.
        """


def executor_of(name: str | None, workers: int) -> Executor:
    """The executor with a name; by default this process for one worker and processes for several.

    Raises:
        SpecError: There is none of this name.
    """
    executor = registry.build("executor", name or ("inline" if workers == 1 else "processes"), {}, where="on")
    if not isinstance(executor, Executor):
        raise SpecError(f"{name!r} is no executor", where="on", allowed=", ".join(registry.names("executor")))
    return type(executor)(workers=workers)


def ready(waiting: Iterable[Computation], running: Iterable[Computation]) -> list[Computation]:
    """The waiting tasks that may start: nothing that they need is waiting or running."""
    waiting = list(waiting)
    to_come = {task.key for task in (*waiting, *running)}
    return [task for task in waiting if not to_come.intersection(task.needs)]
