"""Optimisers by name, with their learning rate and weight decay; fused if torch supports it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["adam", "adamw", "sgd"]
"""`adam` adds weight decay to the gradient, `adamw` does not; `sgd` has momentum 0.9."""

_MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, lr, wd: torch.optim.Adam(p, lr=lr, weight_decay=wd, fused=_fusable(p)),
    "adamw": lambda p, lr, wd: torch.optim.AdamW(p, lr=lr, weight_decay=wd, fused=_fusable(p)),
    "sgd": lambda p, lr, wd: torch.optim.SGD(p, lr=lr, weight_decay=wd, momentum=0.9),
}


def make_optimizer(
    name: OptimizerName, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An optimiser over these parameters."""
    return _MAKERS[name](list(parameters), learning_rate, weight_decay)


def cosine(steps: int, final: float) -> Callable[[int], float]:
    """A factor on the learning rate that falls from 1 to `final` along half a cosine.

    Args:
        steps: Steps until the factor reaches `final`; then it stays there.
        final: Factor at the end.

    Returns:
        A function from step (from 0) to factor.
    """
    return lambda step: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def _fusable(parameters: Sequence[nn.Parameter]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
