"""Train against an adversary that relearns the forget set (TAR, Tamirisa et al., 2408.00761, as in 2505.22310).

At each of `outer_steps` steps, `copies` copies of the model relearn the forget set by `inner_steps` Adam steps on
CE(forget). After every inner step the gradient of -entropy(forget) is computed at the copy: descent on it makes the
adversary less certain of what it relearned. The mean over copies and steps is used as if it were the model's own
gradient (first order: the dependence of the copy on the model is ignored). The model takes a step on

    alpha * (CE(retain) + MSE(h(x_R), h0(x_R))) + gamma * mean over copies and steps of -entropy(forget),

h being hidden states, averaged over layers, and h0 those of the method's input model, as in 2505.22310's code: after
another method that one's model, not the original. The entropy is that of the prediction, in nats, a mean over
decisions: it is *maximised*, and does not use labels of the forget set.

The papers require a model in which the forget set is suppressed already. Name a method that does this with `after` in a
spec (`expunge.unlearn(..., after=...)`). The method also runs on an original, but then it preserves the hidden states
of a model that knows the forget set.

Every inner step of every copy has its own forget batch, on which the entropy is computed too. If all copies had the
same batches, copies without dropout would be identical. Copies and their optimisers are dropped after each outer step.
Copies are in training mode; batch norm normalises by the forget batch, and by running statistics if it has one example.

The code of 2505.22310 draws one forget batch for each copy and uses it in all its inner steps. It has 4 copies of 16
steps over 25 epochs at a hundredth of the inner rate; the defaults here are scaled down. Its h0 is computed in training
mode, where batch norm uses the batch's statistics; here that model is in evaluation mode. Its hidden states are those
after four and seven of eight blocks. The default here is the inputs of two modules with weights, at half depth and the
last. Without hidden states that training can change, the term is left out.

Cost: each outer step takes one gradient per retain example of its batch, and two (one to relearn, one of the entropy)
per forget example, inner step and copy. Both sets are cycled; the last batch of a pass holds the rest. If the batch
sizes divide the sets, this is outer_steps * (batch_size + 2 * copies * inner_steps * forget_batch_size). That is
expensive: with the paper's 4 copies of 16 steps, 8,192 gradients in addition to 128. The method stops before an outer
step that exceeds the budget. Hidden states of the input model are forward passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import RunError
from expunge.base.part import Count, NonNegative, Positive
from expunge.core.case import copy_for_training
from expunge.core.data import Batch
from expunge.core.decisions import loss
from expunge.core.features import Features, FeatureSite, half_way_and_last, require_layers
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import require_distinct
from expunge.core.problem import Problem
from expunge.core.refusals import require_trainable
from expunge.methods._distill import teacher_of
from expunge.numerics.precision import zeros_for
from expunge.numerics.real import as_real
from expunge.train.loop import endless, fit, mean_batch
from expunge.train.optim import OptimizerName, make_optimizer

WHERE = "method.tar.layers"


@dataclass(frozen=True)
class Round:
    """The batches of one outer step: a retain batch, and for each copy a forget batch per inner step."""

    retain: Batch
    forget: Sequence[Sequence[Batch]]

    @property
    def size(self) -> int:
        """Per-example gradients; each forget batch takes two."""
        return self.retain.size + 2 * sum(batch.size for batches in self.forget for batch in batches)


@dataclass(frozen=True)
class TAR(Method):
    """Keep entropy on forget high while an adversary relearns it; for a model that another method has unlearned."""

    held: ClassVar[float] = 7.5
    adapts: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    version: ClassVar[int] = 2
    cite: ClassVar[str] = "tamirisa2025tar"
    paper: ClassVar[str] = "TAR, 2025"
    effort: ClassVar[str] = "very high, nested steps"

    outer_steps: Count = 50
    """Number of steps of the model."""
    learning_rate: Positive = 2e-4
    """Size of the model's steps, constant."""
    batch_size: Count = 128
    """Retain examples per outer step."""
    optimizer: OptimizerName = "adam"
    """Optimiser of the model: `adam`, `adamw` or `sgd`."""
    weight_decay: NonNegative = 0.0
    """Coefficient of the squared norm, in the model's steps."""
    copies: Count = 2
    """Adversaries per outer step."""
    inner_steps: Count = 8
    """Adam steps of each adversary."""
    inner_learning_rate: Positive = 1e-3
    """Size of an adversary's steps, constant."""
    forget_batch_size: Count = 64
    """Forget examples per inner step; the forget set is cycled."""
    alpha: NonNegative = 1.0
    """Weight of cross-entropy and hidden states on retain."""
    gamma: NonNegative = 4.0
    """Weight of the entropy on forget."""
    layers: tuple[str, ...] = ()
    """Paths of the modules whose outputs are preserved; by default the hidden states at half depth and the last."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per retain example of an outer step, two per forget example of each copy's inner steps."""
        inner = self.copies * self.inner_steps * mean_batch(forget, self.forget_batch_size)
        return self.outer_steps * (mean_batch(retain, self.batch_size) + 2 * inner)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Take the outer steps.

        Raises:
            SpecError: A named layer does not exist, or has no features per decision.
            RunError: The model or an adversary diverged.
        """
        problem, parameters, start = job.problem, require_trainable(student), teacher_of(student)
        read = Features(problem, self._preserved(student, problem), WHERE)

        def step(batches: Round) -> Tensor:
            tampered = tampered_gradient(student, problem, batches.forget, self.inner_learning_rate)
            # The value of this scalar has no meaning; its gradient is the tampered gradient.
            against = sum((g * as_real(p)).sum() for g, p in zip(tampered, parameters, strict=True))
            return self.alpha * retain_loss(student, start, read, batches.retain) + self.gamma * against

        optimizer = make_optimizer(self.optimizer, parameters, self.learning_rate, self.weight_decay)
        fit(parameters, step, self._rounds(job), optimizer, meter=job.meter)
        return student

    def _rounds(self, job: Job) -> Iterator[Round]:
        problem, generator = job.problem, job.generator("batches")
        retain = endless(problem.data, problem.retain, self.batch_size, generator)
        forget = endless(problem.data, problem.forget, self.forget_batch_size, generator)
        for _ in range(self.outer_steps):
            yield Round(next(retain), [list(islice(forget, self.inner_steps)) for _ in range(self.copies)])

    def _preserved(self, model: nn.Module, problem: Problem) -> list[FeatureSite]:
        if self.layers:
            return require_layers(model, self.layers, WHERE)
        return half_way_and_last(model, problem)


def tampered_gradient(
    model: nn.Module, problem: Problem, forget: Sequence[Sequence[Batch]], learning_rate: float
) -> list[Tensor]:
    """Gradient of -entropy at adversaries that start from the model, averaged over adversaries and their steps.

    Args:
        model: Copied for each adversary, never changed.
        problem: Gives the objective.
        forget: For each adversary, the batch of each of its steps.
        learning_rate: Size of the adversaries' Adam steps on cross-entropy.

    Returns:
        A real tensor per trainable parameter.

    Raises:
        SpecError: A copy shares storage with the model, because the model overrides how it is copied.
        RunError: An adversary diverged.
    """
    total = [zeros_for(as_real(parameter.detach())) for parameter in require_trainable(model)]
    for batches in forget:
        adversary = copy_for_training(model)
        require_distinct(adversary, model)
        parameters = require_trainable(adversary)
        optimizer = make_optimizer("adam", parameters, learning_rate)
        for step, batch in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            problem.objective.loss(adversary, batch).backward()
            optimizer.step()
            certainty = -entropy(problem.objective.decisions(adversary, batch).logits)
            if not certainty.isfinite():
                raise _diverged(step, learning_rate)
            gradients = torch.autograd.grad(certainty, parameters, allow_unused=True, materialize_grads=True)
            for entry, gradient in zip(total, gradients, strict=True):
                entry.add_(as_real(gradient))
    return [entry / sum(map(len, forget)) for entry in total]


def retain_loss(student: nn.Module, start: nn.Module, read: Features, batch: Batch) -> Tensor:
    """Cross-entropy, and mean squared difference of hidden states from the start model's, averaged over layers."""
    with torch.no_grad():
        start_states = read(start, batch)[1]
    decisions, states = read(student, batch)
    errors = [F.mse_loss(state, start_state) for state, start_state in zip(states, start_states, strict=True)]
    return loss(decisions) + (torch.stack(errors).mean() if errors else 0.0)


def entropy(logits: Tensor) -> Tensor:
    """Mean over decisions of the prediction's entropy in nats, from logits `[n, c]`."""
    chances = F.log_softmax(logits, 1)
    return -(chances.exp() * chances).sum(1).mean()


def _diverged(step: int, learning_rate: float) -> RunError:
    return RunError(
        f"an adversary's entropy is not finite after its step {step} with learning rate {learning_rate:g}",
        where="tar",
        remedy="lower inner_learning_rate, or learning_rate",
    )
