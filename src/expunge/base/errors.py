"""Errors that a user can act on: where it is, what was found, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONG = 160
"""Letters of allowed values that fill more than a line or two."""
NEAREST = "did you mean"


class ExpungeError(Exception):
    """A user-facing failure; the command line prints it in one message and exits with `exit_code`.

    Args:
        finding: What was found, as a sentence without a full stop.
        where: The place: a key path in a file, a module path, a stage.
        allowed: What would have been accepted.
        remedy: What to do about it.
    """

    exit_code = 4

    def __init__(self, finding: str, *, where: str = "", allowed: str = "", remedy: str = "") -> None:
        super().__init__(finding, where, allowed, remedy)
        self.finding, self.where, self.allowed, self.remedy = finding, where, allowed, remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.finding}" if self.where else self.finding
        told = [f"allowed: {self.allowed}"] if self.allowed else []
        told += [self.remedy] if self.remedy else []
        # Behind many names nobody would find the nearest one.
        if len(self.allowed) > LONG and self.remedy.startswith(NEAREST):
            told.reverse()
        return "; ".join([text, *told])

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling; errors travel between workers.
        return _rebuild, (type(self), self.finding, self.where, self.allowed, self.remedy)

    def at(self, where: str) -> ExpungeError:
        """The same error with an outer place put before its own."""
        joined = f"{where}.{self.where}" if self.where else where
        return type(self)(self.finding, where=joined, allowed=self.allowed, remedy=self.remedy)


def _rebuild(kind: type[ExpungeError], finding: str, where: str, allowed: str, remedy: str) -> ExpungeError:
    return kind(finding, where=where, allowed=allowed, remedy=remedy)


class GateFailed(ExpungeError):
    """A gate that the spec declares does not hold."""

    exit_code = 1


class SpecError(ExpungeError):
    """The spec, an argument or the user's data is not acceptable."""

    exit_code = 2


class MissingError(ExpungeError):
    """Something that has to be installed or provided first is not there."""

    exit_code = 3


class RunError(ExpungeError):
    """The run itself failed: training diverged, the disk is full."""

    exit_code = 4


def nearest(found: str, allowed: Iterable[str]) -> str:
    """A did-you-mean clause for an unknown name, or the empty string."""
    close = get_close_matches(found, list(allowed), n=1, cutoff=0.55)
    return f"{NEAREST} {close[0]!r}?" if close else ""


def unknown(what: str, found: str, allowed: Iterable[str], *, where: str) -> SpecError:
    """The error for a name that is not among those allowed."""
    options = sorted(allowed)
    return SpecError(
        f"unknown {what} {found!r}", where=where, allowed=", ".join(options) or "none", remedy=nearest(found, options)
    )
