"""Monitors measure a model during training without changing the training. One line attaches them to any loop.

    sharpness = SharpnessMonitor(mean_loss, [batch], optimizer, every=50)
    fit(..., on_step=watch(model, sharpness))

In a spec, `[[monitor]] name = "sharpness"` watches the training of originals and references.

In a loop of your own, call `sharpness(step, model)` after each step. Monitors measure on the examples that you give
them, in evaluation mode, and keep plain lists. They draw from their own generators and do not change weights,
gradients, buffers or modes: the trained weights are the same, bit for bit, with and without them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from expunge.train.monitors.code_usage import CodeUsageMonitor
from expunge.train.monitors.feature_loss import FeatureLossMonitor, class_directions
from expunge.train.monitors.sharpness import SharpnessMonitor

__all__ = ["CodeUsageMonitor", "FeatureLossMonitor", "SharpnessMonitor", "class_directions", "watch"]


def watch(model: nn.Module, *monitors: Callable[[int, nn.Module], None]) -> Callable[[int, float], None]:
    """Combine monitors of a model into a function that `fit` takes as `on_step`."""

    def on_step(step: int, _: float) -> None:
        for monitor in monitors:
            monitor(step, model)

    return on_step
