"""Errors that a user can act on: the place, the finding, what is allowed, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

LONG = 160
"""Length in letters above which the allowed values are printed last."""
MOST = 2000
"""Length in letters above which a finding is cut: it may quote a whole table."""
NEAREST = "did you mean"


class ExpungeError(Exception):
    """A failure that the user can act on; the command line prints it in one message and exits with `exit_code`.

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
        finding = (
            self.finding if len(self.finding) <= MOST else f"{self.finding[:MOST]} ... ({len(self.finding)} letters)"
        )
        text = f"{self.where}: {finding}" if self.where else finding
        clauses = [f"allowed: {self.allowed}"] if self.allowed else []
        clauses += [self.remedy] if self.remedy else []
        # After a long list of names the reader would overlook the nearest one.
        if len(self.allowed) > LONG and self.remedy.startswith(NEAREST):
            clauses.reverse()
        return "; ".join([text, *clauses])

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are pickled between workers, and the default pickling loses keyword-only arguments.
        return _rebuild, (type(self), self.finding, self.where, self.allowed, self.remedy)

    def at(self, where: str) -> ExpungeError:
        """The same error with an outer place before its own; what both places name is named once.

        `attack.k` within `attack 'relearn'` becomes `attack 'relearn'.k`.
        """
        joined = _joined(where, self.where)
        return type(self)(self.finding, where=joined, allowed=self.allowed, remedy=self.remedy)


def _joined(outer: str, inner: str) -> str:
    """Two places as one: without the kind of part and the label at the start of the inner one, if the outer names it.

    Args:
        outer: Such as `attack 'relearn'`, `attack[0]` or `data`.
        inner: A place within, such as `k`, `attack.k`, `attack.relearn (ResNet)`, or empty.
    """
    kind, _, label = outer.partition(" ")
    if kind and re.match(rf"{re.escape(kind)}(?=[. ]|$)", inner):
        inner = inner.removeprefix(kind).strip(". ")
        name = label.strip("'")
        if name and re.match(rf"'?{re.escape(name)}'?(?=[. ]|$)", inner):
            inner = re.sub(rf"^'?{re.escape(name)}'?[. ]*", "", inner)
    return f"{outer} {inner}" if inner.startswith("(") else f"{outer}.{inner}" if inner else outer


def _rebuild(kind: type[ExpungeError], finding: str, where: str, allowed: str, remedy: str) -> ExpungeError:
    return kind(finding, where=where, allowed=allowed, remedy=remedy)


class GateFailed(ExpungeError):
    """A gate of the spec does not hold."""

    exit_code = 1


class SpecError(ExpungeError):
    """The spec, an argument or the user's data is not acceptable."""

    exit_code = 2


class MissingError(ExpungeError):
    """Something is missing that the user has to install or provide first."""

    exit_code = 3


class RunError(ExpungeError):
    """The run itself failed: for example training diverged, or the disk is full."""

    exit_code = 4


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A did-you-mean clause for an unknown name, or the empty string."""
    close = get_close_matches(name[:LONG], list(allowed), n=1, cutoff=0.55)
    return f"{NEAREST} {close[0]!r}?" if close else ""


def unknown(what: str, name: str, allowed: Iterable[str], *, where: str) -> SpecError:
    """The error for a name that is not among those allowed."""
    options = sorted(allowed)
    return SpecError(
        f"unknown {what} {name!r}", where=where, allowed=", ".join(options) or "none", remedy=nearest(name, options)
    )
