"""Teachers and divergences from them, over decisions.

Two mistakes in published implementations are ruled out here: a teacher that shares storage with its student, which
makes every divergence zero, and a divergence averaged over classes as well as decisions, which divides it by their
number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.core.data import Batch
from expunge.core.modules import frozen_copy, require_distinct
from expunge.core.objective import Objective, kl


def teacher_of(student: nn.Module) -> nn.Module:
    """The student as it is now, frozen, in evaluation mode and in memory of its own.

    Raises:
        SpecError: The copy shares storage with the student, as a model with its own idea of copying can make it.
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
