"""Put a barrier of loss between the model and the original (2505.22310's CBFT, after Lubana et al., 2211.08422).

Minimises CE(retain) - alpha * min(CE at (theta0 + theta) / 2, gamma): a barrier half way along the straight line to the
original, on the retain and the forget batch together, so that fine-tuning cannot lead back. theta0 is the case's
original, also if the method starts from another method's model: the source starts it from safeguarded models and
measures from the trained one. The gradient goes through theta only, which gives a factor 1/2. CE(retain) is the
source's term and the default; `retain` = `kl` replaces it by KL(original || model). Floating-point buffers, such as
running statistics of batch norm, are averaged like the weights. A tied weight stays tied at the midpoint. The cap gamma
applies to the mean of a batch: above it the barrier has no gradient.

The code of 2505.22310 (`mode_connectivity`) has the same loss, but evaluates the midpoint in training mode: there batch
norm uses the batch's statistics and ignores the averaged running statistics. Here the midpoint is in evaluation mode,
as in the audit `path`, so that the barrier is that of a deployed model.

Cost: two gradients per retain example and epoch, at the model and at the midpoint, and one per example of the forget
batch with each retain batch. The forget set is cycled in batches of at most `forget_batch_size`; the last batch of a
pass holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from expunge.base.part import NonNegative, Positive
from expunge.core.data import Batch, joined
from expunge.core.decisions import Decisions, loss
from expunge.core.job import Job
from expunge.core.modules import counterparts, evaluating, movable
from expunge.core.objective import Objective
from expunge.methods._descent import RetainingDescent
from expunge.train.loop import PairBatch


@dataclass(frozen=True)
class ConnectivityBreaking(RetainingDescent):
    """Fine-tuning with a reward for a loss barrier on the line to the original."""

    adapts: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "connectivity breaking (CBFT), 2025"
    effort: ClassVar[str] = "(2 R + B) E"

    alpha: NonNegative = 0.1
    """Weight of the midpoint's loss; the paper's 0.001 is for a ResNet-18 and a hundred epochs."""
    gamma: Positive = 50.0
    """Cap of the midpoint's loss, in nats."""

    def pairs(self, job: Job) -> Iterator[PairBatch]:
        """The batches of all steps, with their cost."""
        return (_Twice(pair.retain, pair.forget) for pair in super().pairs(job))

    def expected_gradients(self, retain: int, forget: int) -> float:
        """The cost of the pairs, with each retain example counted twice."""
        return self.epochs * retain + super().expected_gradients(retain, forget)

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """The retain term minus the capped barrier."""
        objective, retain_loss = job.problem.objective, self.retain_loss(student, job)
        start = counterparts(job.original, student)

        def step(pair: PairBatch) -> Tensor:
            both = joined([pair.retain, pair.forget])
            kept = retain_loss(pair.retain)
            return kept - self.alpha * loss(midway(student, start, objective, both)).clamp(max=self.gamma)

        return step


@dataclass(frozen=True)
class _Twice(PairBatch):
    """A pair whose retain examples are differentiated twice."""

    @property
    def size(self) -> int:
        """Per-example gradients of a step."""
        return 2 * self.retain.size + self.forget.size


def midway(student: nn.Module, start: Mapping[str, Tensor], objective: Objective, batch: Batch) -> Decisions:
    """The decisions at the midpoint between the student and the original's weights, in evaluation mode.

    Args:
        student: Not changed; gradients reach its parameters through the midpoint.
        start: Parameters and floating-point buffers of the original, by name.
        objective: Computes the decisions.
        batch: Examples.

    Returns:
        Decisions with gradients.
    """
    # Halved before the sum: attention masks may hold the largest finite number, whose sum would overflow.
    between = {f"model.{name}": start[name] / 2 + tensor / 2 for name, tensor in movable(student).items()}
    with evaluating(student):
        decisions: Decisions = functional_call(_Deciding(student, objective), between, (batch,))
    return decisions


class _Deciding(nn.Module):
    """A model whose outputs are decisions, for `functional_call` with other weights."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Decisions:
        return self.objective.decisions(self.model, batch)
