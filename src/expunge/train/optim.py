"""Optimisers by name, with their learning rate and weight decay; fused if torch supports it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["adam", "adamw", "sgd"]
"""`adam` adds weight decay to the gradient, `adamw` does not; `sgd` has momentum 0.9."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's names of its running means of gradients and of their squares."""

_MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, lr, wd: torch.optim.Adam(p, lr=lr, weight_decay=wd, fused=_fusable(p)),
    "adamw": lambda p, lr, wd: torch.optim.AdamW(p, lr=lr, weight_decay=wd, fused=_fusable(p)),
    "sgd": lambda p, lr, wd: torch.optim.SGD(p, lr=lr, weight_decay=wd, momentum=0.9),
}


def make_optimizer(
    name: OptimizerName, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An optimiser over these parameters. Its states are made now, and not in the first step."""
    optimizer = _MAKERS[name](list(parameters), learning_rate, weight_decay)
    if name != "sgd" and _fusable(parameters):
        for parameter in parameters:
            # What torch makes in the first step: there it would lie where activations were, and leave holes.
            step = torch.zeros((), device=parameter.device, dtype=torch.float32)
            optimizer.state[parameter] = {"step": step, **{m: torch.zeros_like(parameter) for m in MOMENTS}}
    return optimizer


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
