"""Distil from a random teacher on the forget set, from the original on the retain set (Chundawat et al., 2205.08096).

Minimises the mean over a mixed batch of KL(bad(x) || model(x)) for x in forget and KL(original(x) || model(x)) for x in
retain, with a factor T^2 if T is not 1. After another method, too, the competent teacher is the case's original, which
in published code is another argument than the student. The bad teacher is the model with reinitialised trainable
layers. The retain examples are a random share, the same in every epoch. KL is the sum over classes. The published code
calls torch's KL with its default reduction, which also takes the mean over classes and so divides every gradient by
their number. It has no factor T^2, so a larger T shrinks its gradients; at its T of 1 there is no difference. Both
teachers are in evaluation mode, there and here.

Cost: one gradient per forget example and per example of the retain share, in each epoch. Teachers are forward passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import Count, Positive, Share
from expunge.base.seeds import derive
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.methods._descent import Descent
from expunge.methods._distill import divergence, logits_of, teacher_of
from expunge.methods._layers import layers, reinitialise
from expunge.train.loop import batches


@dataclass(frozen=True)
class BadTeacher(Descent):
    """Distillation from an incompetent and a competent teacher."""

    held: ClassVar[float] = 2
    adapts: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "chundawat2023bad"
    paper: ClassVar[str] = "bad teacher, 2023"
    effort: ClassVar[str] = "(R share + F) E"

    epochs: Count = 10
    """Passes over the forget set and the retain share."""
    learning_rate: Positive = 1e-3
    """Step size, constant; half of training's default, because there are few forget examples among the others."""
    batch_size: Count = 128
    """Examples per step, of both kinds."""
    retain_share: Share = 0.3
    """Share of the retain set that is used."""
    temperature: Positive = 1.0
    """T: logits are divided by T before they are compared."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per forget example and per example of the retain share, in each epoch."""
        return self.epochs * (forget + self.retain_share * retain)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Distil from both teachers."""
        good, bad = teacher_of(job.original), incompetent(student, derive(job.seed, "teacher"))
        problem, generator = job.problem, job.generator("batches")

        def step(batch: Batch) -> Tensor:
            decisions = problem.objective.decisions(student, batch)
            forget = torch.isin(batch.ids, problem.forget).to(decisions.example.device)[decisions.example]
            bad_logits, good_logits = (logits_of(problem.objective, teacher, batch) for teacher in (bad, good))
            reference = torch.where(forget[:, None], bad_logits, good_logits)
            return divergence(reference, decisions.logits, self.temperature)

        count = math.ceil(self.retain_share * len(problem.retain))
        kept = problem.retain[torch.randperm(len(problem.retain), generator=generator)[:count]]
        ids = torch.cat([problem.forget, kept])
        items = batches(problem.data, ids, self.batch_size, self.epochs, generator)
        return self.descend(student, step, items, job.meter)


def incompetent(student: nn.Module, seed: int) -> nn.Module:
    """A teacher of the student's architecture whose trainable layers have fresh initial values.

    Raises:
        MissingError: A layer cannot be reinitialised.
    """
    teacher = teacher_of(student)
    for theirs, ours in zip(teacher.parameters(), student.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    reinitialise(teacher, layers(teacher), seed)
    return teacher.requires_grad_(False)
