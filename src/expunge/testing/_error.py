"""The error for a broken contract, and how checks raise it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass


class ContractError(AssertionError):
    """A part breaks a contract.

    Args:
        part: The part that was checked.
        contract: The broken rule, in a few words.
        finding: What the check found.
        remedy: How to fix it.
    """

    # The module from which users import it, which tracebacks name.
    __module__ = "expunge.testing"

    def __init__(self, part: object, contract: str, finding: str, remedy: str) -> None:
        name = type(part).__name__ if is_dataclass(part) else getattr(part, "__name__", type(part).__name__)
        super().__init__(f"{name} breaks the contract {contract!r}: {finding}; {remedy}")
        self.contract, self.finding, self.remedy = contract, finding, remedy


Fail = Callable[[str, str, str], ContractError]
"""(contract, finding, remedy) -> the error, which also names the part and the setting."""


def failing(part: object, where: str = "") -> Fail:
    """Make the function that builds errors about this part; `where` names the setting in which it runs."""

    def fail(contract: str, finding: str, remedy: str) -> ContractError:
        return ContractError(part, contract, f"on {where}, {finding}" if where else finding, remedy)

    return fail
