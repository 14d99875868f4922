"""Contract checks for parts, the library's and your own: call `check_method(MyMethod())` in a test of your package.

    from expunge import testing

    def test_contract() -> None:
        testing.check_method(MyMethod())

There is a check for each kind of part: method, attack, audit, task, model, data, block, diagnostic, objective,
augmentation. Each check runs the part on
small artificial problems. It raises a `ContractError` that names the contract, the finding and the remedy. Contracts
describe behaviour that is visible from outside: nothing inside a part is mocked or replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from expunge.testing._attacks import check_attack
from expunge.testing._audits import check_audit
from expunge.testing._augmentations import check_augmentation
from expunge.testing._blocks import check_block
from expunge.testing._data import check_data
from expunge.testing._diagnostics import check_diagnostic
from expunge.testing._error import ContractError
from expunge.testing._methods import check_method
from expunge.testing._models import check_model
from expunge.testing._objectives import check_objective
from expunge.testing._tasks import check_task

__all__ = [
    "ContractError",
    "check_attack",
    "check_audit",
    "check_augmentation",
    "check_block",
    "check_data",
    "check_diagnostic",
    "check_method",
    "check_model",
    "check_objective",
    "check_task",
]

Kind = Literal["method", "attack", "audit", "task", "model", "data", "block", "diagnostic", "objective", "augmentation"]
CHECKS: Mapping[Kind, Callable[[Any], None]] = {
    "method": check_method,
    "attack": check_attack,
    "audit": check_audit,
    "task": check_task,
    "model": check_model,
    "data": check_data,
    "block": check_block,
    "diagnostic": check_diagnostic,
    "objective": check_objective,
    "augmentation": check_augmentation,
}
"""Kind of part, as in `expunge.base.registry` -> its check."""
