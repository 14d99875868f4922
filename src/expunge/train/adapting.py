"""Let a method or an attack train an adapter instead of weights: give it a model with one, and merge it afterwards."""

from __future__ import annotations

from torch import nn

from expunge.core.adapter import Adapter, adapted, merged
from expunge.core.first_pass import EXAMPLES
from expunge.core.modules import sharing
from expunge.core.problem import Problem
from expunge.train.loop import evaluation_size


def seen(original: nn.Module, adapter: Adapter | None) -> nn.Module:
    """The original as a part sees it. Under an adapter, teachers and other copies of it share its memory.

    No part trains such a copy: its weights are frozen.
    """
    return original if adapter is None else sharing(original).requires_grad_(False)


def given(start: nn.Module, adapter: Adapter | None, seed: int, where: str) -> nn.Module:
    """What the part starts from: a copy of the model with an adapter; without an adapter the model itself.

    Raises:
        SpecError: The adapter does not fit the model.
    """
    return start if adapter is None else adapted(start, adapter, seed, f"{where}.adapter")


def taken(model: nn.Module, adapter: Adapter | None, problem: Problem, where: str) -> tuple[nn.Module, float | None]:
    """The part's result as a model of the plain architecture, and how much merging changed its outputs.

    Args:
        model: What the part returned.
        adapter: The adapter; `None` if the part trained weights.
        problem: Its first forget examples are run before and after merging.
        where: The part, for messages.

    Returns:
        The model with the adapter merged, and the largest difference of outputs; without an adapter `model` and `None`.

    Raises:
        RunError: The part trained more than the adapter, or merging changes the outputs.
    """
    if adapter is None:
        return model, None
    few = problem.data.batch(problem.forget[: min(EXAMPLES, evaluation_size(problem.data))])
    return merged(model, problem.objective, few, where)
