"""Teachers, and divergences from their predictions, over decisions.

This rules out two mistakes in published implementations: a teacher that shares storage with its student, which makes
every divergence zero; and a divergence averaged over classes as well as decisions, which divides it by the number of
classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.core.data import Batch
from expunge.core.modules import frozen_copy, require_distinct
from expunge.core.objective import Objective, kl


def teacher_of(student: nn.Module) -> nn.Module:
    """A frozen copy of the student's present state, in evaluation mode and in separate memory.

    Raises:
        SpecError: The copy shares storage with the student, because the model overrides how it is copied.
    """
    teacher = frozen_copy(student)
    require_distinct(teacher, student)
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
