"""Progress of a run: one live line with the remaining time in a terminal, or plain lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from expunge.base.terminal import write

STAGES, SECONDS = 25, 60.0
"""A log repeats the remaining time after this many stages or seconds."""


class Progress:
    """Shows progress; the pipeline calls it when stages begin and finish.

    Args:
        stream: Stream to write to; stderr by default.
        live: Overwrite a single line; by default if the stream is a terminal.
        clock: Returns the time in seconds; tests replace it.
    """

    def __init__(
        self, stream: TextIO | None = None, live: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() if live is None else live
        self.clock = clock
        self.done = self.total = 0
        self._left: dict[str, float] = {}
        self._running: dict[str, str] = {}
        self._workers, self._start, self._expected = 1, 0.0, 0.0
        self._said, self._unsaid = 0.0, 0

    def start(self, total: int, missing: Mapping[str, float], workers: int) -> None:
        """A run begins.

        Args:
            total: Number of stages.
            missing: Expected seconds of each stage that is still to run, by key.
            workers: Number of parallel processes.
        """
        self.total, self.done = total, total - len(missing)
        self._left, self._workers, self._start, self._expected = dict(missing), workers, self.clock(), 0.0
        self._running, self._said, self._unsaid = {}, self._start, 0
        if self.done:
            self.say(f"{self.done} of {self.total} stages are already done")

    def begun(self, key: str, name: str) -> None:
        """A stage begins."""
        self._running[key] = name
        self._show()

    def finished(self, key: str, name: str, seconds: float) -> None:
        """A stage has finished."""
        self.done += 1
        self._running.pop(key, None)
        self._expected += self._left.pop(key, 0.0)
        if self.live:
            self._show()
        else:
            self.say(f"{self._count()} {name}  {seconds:.1f} s{self._now_and_then()}")

    def clear(self) -> None:
        """The run has ended: it finished or failed."""
        self._running = {}
        if self.live:
            self._overwrite("")

    def remaining(self) -> float | None:
        """Expected seconds to the end, scaled by actual over expected time so far; `None` while unknown."""
        if not self._expected or not self._left:
            return None
        scale = (self.clock() - self._start) * self._workers / self._expected
        return sum(self._left.values()) * scale / min(self._workers, len(self._left))

    def say(self, line: str) -> None:
        """Write a permanent line."""
        if self.live:
            self._overwrite("")
        write(self.stream, line)

    def _count(self) -> str:
        return f"[{self.done:{len(str(self.total))}}/{self.total}]"

    def _show(self) -> None:
        """The live line; the most important words come first, because a narrow terminal cuts the end."""
        if not self.live:
            return
        left, names = self.remaining(), list(self._running.values())
        words = [self._count(), f"about {clock_text(left)} left" if left is not None else "", *names[:1]]
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self._overwrite("" if self.done == self.total else "  ".join(filter(None, words)) + others)

    def _now_and_then(self) -> str:
        """The remaining time as the end of a log line, empty if the log gave it a short time ago."""
        self._unsaid += 1
        left, now = self.remaining(), self.clock()
        if left is None or (self._unsaid < STAGES and now - self._said < SECONDS):
            return ""
        self._said, self._unsaid = now, 0
        return f"   about {clock_text(left)} left"

    def _overwrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        # Carriage return, the text, and the control sequence that erases the rest of the line.
        self.stream.write("\r")
        write(self.stream, line[:width], end="\x1b[K")


def forecast_text(stages: Sequence[tuple[str, float | None]], workers: int) -> str:
    """What a run would do: the answer in one line, then a line per kind of stage that is left.

    Args:
        stages: Kind and expected seconds of each stage; `None` if it is done.
        workers: Number of parallel processes.
    """
    left = [(kind, seconds) for kind, seconds in stages if seconds is not None]
    if not left:
        return f"nothing is left to do: all {len(stages)} stages are done"
    total = clock_text(sum(seconds for _, seconds in left) / workers)
    lines = [f"{len(left)} of {len(stages)} stages to run, about {total} with {workers} worker{'s' * (workers > 1)}"]
    for kind in dict.fromkeys(kind for kind, _ in left):
        each = [seconds for name, seconds in left if name == kind]
        lines.append(f"{len(each):>8}  {kind}, {clock_text(sum(each))} in all")
    return "\n".join(lines)


def clock_text(seconds: float) -> str:
    """A duration in words: `40 s`, `3 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
