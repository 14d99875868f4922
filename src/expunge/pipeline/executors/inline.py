"""One task after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.pipeline.executor import Begun, Executor, Finished, Task


@dataclass(frozen=True)
class InlineExecutor(Executor):
    """Run tasks in this process; nothing is pickled."""

    def run(self, tasks: Sequence[Task], begun: Begun, finished: Finished) -> None:
        for task in tasks:
            begun(task)
            finished(task, task.call(*task.arguments))
