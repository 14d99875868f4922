"""Refusals before anything is trained: what a part needs, and what the objective and the model provide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.base.errors import ExpungeError, MissingError, SpecError
from expunge.core.data import Data
from expunge.core.modules import evaluating, trainable
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


def refuse_mixing(model: nn.Module, objective: Objective, data: Data, ids: Tensor) -> None:
    """Refuse a model whose answer on an example depends on the other examples of its batch, in evaluation mode.

    Such a model has no answer that could be judged: it may be right on an example in one batch and wrong in another.

    Args:
        model: The model; not changed.
        objective: Reads its predictions.
        data: The source of the examples.
        ids: Three examples `[3]`: the first is predicted next to the second, and next to the third.

    Raises:
        SpecError: The two predictions differ; names the norms without running statistics, if there are any.
    """
    with evaluating(model), torch.no_grad():
        first, again, other = (objective.prediction(model, data.batch(ids[at], trimmed=False)) for at in _PAIRS)
    # Rounding may depend on the batch; a model that draws random numbers answers differently in the same batch.
    tolerance = torch.finfo(first.dtype).eps ** 0.5 * float(first[0].abs().max().clamp(min=1))
    if not _differ(first[0], other[0], tolerance) or _differ(first[0], again[0], tolerance):
        return
    norms = [
        f"{path or 'model'} ({type(module).__name__})"
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]
    reason = f": without running statistics are {', '.join(norms)}" if norms else ""
    raise SpecError(
        f"its answer on an example changes with the other examples of the batch{reason}",
        where=f"model ({type(model).__name__})",
        remedy="train it with norms that keep running statistics (track_running_stats=True), or with group norm",
    )


_PAIRS = ([0, 1], [0, 1], [0, 2])


def _differ(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool(one.isfinite().all()) and float((one - other).abs().max()) > tolerance


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
