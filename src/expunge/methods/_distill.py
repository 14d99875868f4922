"""Teachers, and divergences from their predictions, over decisions.

This rules out two mistakes in published implementations: a teacher that shares storage with its student, which makes
every divergence zero; and a divergence averaged over classes as well as decisions, which divides it by the number of
classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.core.data import Batch
from expunge.core.decisions import kl
from expunge.core.modules import frozen_copy, require_distinct
from expunge.core.objective import Objective


def teacher_of(model: nn.Module) -> nn.Module:
    """A frozen copy of the model's present state, in evaluation mode and in separate memory.

    Args:
        model: `job.original` for a teacher that knows the forget set, also after another method; the student itself for
            a teacher that is the method's input.

    Raises:
        SpecError: The copy shares storage with the model, because the model overrides how it is copied.
    """
    teacher = frozen_copy(model)
    require_distinct(teacher, model)
    return teacher


def logits_of(objective: Objective, teacher: nn.Module, batch: Batch) -> Tensor:
    """The teacher's logits `[n, c]`, without gradients."""
    with torch.no_grad():
        return objective.decisions(teacher, batch).logits


def divergence(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(reference / T || model / T), the mean over decisions in nats, from logits `[n, c]`.

    The factor T^2 keeps the gradient's size when T changes (Hinton et al., 1503.02531).
    """
    return temperature**2 * kl(reference / temperature, logits / temperature)
