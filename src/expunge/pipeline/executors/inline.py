"""One task after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.pipeline.executor import Begun, Computation, Executor, Finished


@dataclass(frozen=True)
class InlineExecutor(Executor):
    """Run tasks in this process; nothing is pickled."""

    def run(self, tasks: Sequence[Computation], begun: Begun, finished: Finished) -> None:
        for task in tasks:
            begun(task)
            finished(task, task.call(*task.arguments))
