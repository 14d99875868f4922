"""A broken contract, and how a check says which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass


class ContractError(AssertionError):
    """A part breaks a contract.

    Args:
        part: What was checked.
        contract: The rule that is broken, in a few words.
        finding: What was found.
        remedy: What to do about it.
    """

    # Where its users import it from: tracebacks name this.
    __module__ = "expunge.testing"

    def __init__(self, part: object, contract: str, finding: str, remedy: str) -> None:
        name = type(part).__name__ if is_dataclass(part) else getattr(part, "__name__", type(part).__name__)
        super().__init__(f"{name} breaks the contract {contract!r}: {finding}; {remedy}")
        self.contract, self.finding, self.remedy = contract, finding, remedy


Fail = Callable[[str, str, str], ContractError]
"""(contract, finding, remedy) -> the error, with the part and what it ran on filled in."""


def failing(part: object, where: str = "") -> Fail:
    """How a check of this part fails; `where` is what the part runs on."""

    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(part, contract, f"on {where}, {finding}" if where else finding, remedy)

    return fail
