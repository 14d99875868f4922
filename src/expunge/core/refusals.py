"""Refusals before anything is trained: what a part needs, and what the objective and the model provide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from expunge.base.errors import ExpungeError, MissingError, SpecError
from expunge.core.modules import trainable
from expunge.core.objective import Objective

if TYPE_CHECKING:
    from expunge.core.contracts import Attack, Audit
    from expunge.core.method import Method


def refuse_model(part: Method | Attack | Audit, model: nn.Module, where: str) -> None:
    """Refuse a model that a part does not support.

    Raises:
        ExpungeError: The part does not support the model; the message starts with `where`.
    """
    try:
        part.check_model(model)
    except ExpungeError as error:
        raise error.at(where) from None


def unmet_needs(method: Method, objective: Objective, model: nn.Module, *, recipe: bool) -> list[str]:
    """The needs of a method that this objective and this model (or one like it) do not meet."""
    have = objective.provides | ({"recipe"} if recipe else set())
    return [*sorted(method.required - have), *(f"the block {name}" for name in method.missing_blocks(model))]


def refuse_objective(needs: frozenset[str], objective: Objective, where: str) -> None:
    """Refuse a part that needs what the objective does not provide.

    Raises:
        SpecError: The message names what is missing, and what the objective provides.
    """
    lacking = sorted(needs - objective.provides)
    if lacking:
        name = type(objective).__name__
        raise SpecError(
            f"needs {', '.join(lacking)}, which the objective {name} does not provide",
            where=where,
            allowed=f"parts that need no more than {', '.join(sorted(objective.provides)) or 'a loss'}",
            remedy="leave it out",
        )


def refuse_unmet(unmet: list[str], where: str) -> None:
    """Refuse a method whose needs are not met.

    Raises:
        MissingError: A need is not met; the message names all of them.
    """
    if unmet:
        lacks_block = unmet[-1].startswith("the block ")
        remedy = "put it into the model: [[model.block]] in a spec, expunge.blocks.put in Python" if lacks_block else ""
        raise MissingError(f"needs {', '.join(unmet)}", where=where, remedy=remedy or "choose another method")


def require_trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to train.

    Raises:
        MissingError: All of them are frozen.
    """
    parameters = trainable(model)
    if not parameters:
        raise MissingError(
            "every parameter is frozen", where=type(model).__name__, remedy="set requires_grad on what may change"
        )
    return parameters
