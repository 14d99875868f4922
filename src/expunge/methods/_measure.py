"""How much of a set a model knows, which methods check along the way; in evaluation mode and without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.core.modules import evaluating
from expunge.core.objective import knows
from expunge.core.problem import Problem
from expunge.train.loop import in_order


def known(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    """Whether the model gets all decisions of each example right, `[len(ids)]` bool on the CPU."""
    with evaluating(model), torch.no_grad():
        flags = [
            knows(problem.objective.decisions(model, batch), batch.size).cpu() for batch in in_order(problem.data, ids)
        ]
    return torch.cat(flags)


def known_share(model: nn.Module, problem: Problem, ids: Tensor) -> float:
    """The share of these examples that the model knows: accuracy of a classifier, recitation of a language model."""
    return float(known(model, problem, ids).double().mean())
