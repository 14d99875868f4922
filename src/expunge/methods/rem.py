"""Move wrong examples into channels that all others can do without, then drop these (REM, 2505.17730).

The model has example-tied dropout: a base that every example uses, and a memory, of which each example uses a few
channels that are its own. A model that was not prepared for this gets its memory now: new channels of its hidden layers
(`blocks/widen.py`), whose outgoing weights are zero. The published code does not grow a model; it switches on half of
the channels, which were left out of training and have their initial weights.

Let CE be an example's cross-entropy (the sum over its decisions), CE_ref that of the model as it came, with the
example's memory on, D_base = CE(base alone) - CE_ref and D_full = CE(base and own memory) - CE_ref. All examples of the
forget set have the same memory channels. Each epoch has up to three parts:

    flush     while the base knows more of the forget set than a share near chance (`chances`), at most `flushes` times:
              one pass over the forget set minimising -(2/beta) mean log sigma(beta D_base)
    repair    one pass over all of the training set, wrong labels included, minimising the mean over the batch of
              (2/beta) log sigma(beta D_full) - [example is in forget] (2/beta) log sigma(beta D_base)
    look      at known(retain) * (1 - max(known(forget), the same share)) of the base; the best model is kept

The repair's first term teaches the wrong labels to the memory that they share; its second keeps them out of the base.
In the end the memory's weights are set to zero, or new channels removed: the result has the shapes that it had, and is
its base.

What an attack is given is that result. Its memory is zero on both sides of each channel, where every gradient is zero
too (`blocks/_memory.py`): fine-tuning, whatever the masks, trains the base alone, as it would in the narrower net that
one would ship. Who fills the memory with random weights and trains those adds capacity, but nothing that was known. An
attack on the model before the drop would be on something that nobody is to have.

D is a difference of cross-entropies, as NPO asks for and the published code computes, while its text is said to print a
ratio of them. That code gives the forget set the mask of id 0, which a clean example has too; the id here belongs to no
example. Its reference model is copied before that id is set and keeps another one, 42, so that CE_ref is taken under
another mask than CE(base and own memory); here both have the same mask. The score of its start model competes with the
later ones; here the first look is after the first epoch. It stops at 0.2, which is twice chance for its ten classes. It
leaves flushes out of its number of steps; here every gradient is charged. Where the base alone is trained, batch norm
uses its running statistics, as in the deployed model, and leaves them as they are; the repair moves them to those of
base and memory together, which do not quite fit the base: prefer group norm, the default of the models here.

Cost: one gradient per training example and repair pass, one more per forget example in it, and one per forget example
and flush; how many flushes there are depends on the model. References, looks and the drop are not charged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import MissingError
from expunge.base.part import Count, Positive
from expunge.blocks import added_memory, hidden_layers
from expunge.blocks.tied_dropout import (
    SHARED,
    Fixed,
    TiedLayer,
    base_only,
    drop_memory,
    memory_weights,
    tied_layers,
    with_memory,
)
from expunge.blocks.widen import cannot_widen
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.core.modules import evaluating, first_parameter, fixed_statistics
from expunge.core.objective import decision_losses, per_example
from expunge.core.problem import Problem
from expunge.methods._descent import Descent
from expunge.numerics.precision import wide_type
from expunge.train.evaluation import known_share
from expunge.train.loop import batches, in_order


@dataclass(frozen=True)
class REM(Descent):
    """Redirection for erasing memory."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    blocks: ClassVar[tuple[type[nn.Module], ...]] = (TiedLayer,)
    cite: ClassVar[tuple[str, ...]] = ("schoepf2025rem", "maini2023localized")
    paper: ClassVar[str] = "REM, 2025"
    effort: ClassVar[str] = "(R + 2 F) E + F flushes"

    epochs: Count = 10
    """Repair passes over the training set."""
    learning_rate: Positive = 4e-4
    """Step size, constant; a fifth of training's default, the ratio of the paper."""
    batch_size: Count = 128
    """Training examples per repair step."""
    forget_batch_size: Count = 64
    """Forget examples per flush step."""
    flushes: Count = 100
    """Most passes over the forget set before each repair; the stopping rule usually needs fewer."""
    chances: Positive = 2.0
    """Flush until the share of forget examples that the base knows is at most this many times 1 / number of labels, or
    half way from there to 1 where that is less: twice chance would be all of them if there are two labels."""
    beta: Positive = 1.0
    """Inverse temperature of both losses."""
    expansion: Fixed = 0.2
    """Probability of a memory channel, where the model was trained with its memory only reserved (`memory` 0)."""
    widen: Positive = 1.0
    """Where the model has no tied dropout: new channels over those that a hidden layer has; 1 doubles it, as the paper
    does. They are taken away in the end."""
    ideal: bool = False
    """All corrupted examples share a mask, discovered or not: a bound for studies, not something that one can do."""
    variant: Literal["full", "no_removal", "no_redirection", "ascent", "npo"] = "full"
    """`full`, or what is left of it: the repair without its second term; without its first; gradient ascent on the
    base in place of -(2/beta) log sigma; flushes alone, once and looking after each."""

    def check(self, problem: Problem) -> None:
        """`ideal` asks for a task that says what is corrupted."""
        if self.ideal and not len(problem.corrupted):
            remedy = "leave ideal out, or take a task that corrupts, such as label_swap"
            raise MissingError("nothing is known to be corrupted", where="REM.ideal", remedy=remedy)

    def missing_blocks(self, model: nn.Module) -> list[str]:
        """None: where there is no tied dropout, it widens the model."""
        return []

    def check_model(self, model: nn.Module) -> None:
        """A model without tied dropout must have a hidden layer that can be widened."""
        layers, refusals = hidden_layers(model)
        if not tied_layers(model) and not layers:
            raise cannot_widen(refusals)

    def expected_gradients(self, retain: int, forget: int) -> float:
        """Repairs, and a flush before each: more flushes where the model needs them."""
        repair = (0 if self.variant == "no_redirection" else retain + forget) + (self.variant != "no_removal") * forget
        return self.flushes * forget if self.variant == "npo" else self.epochs * (repair + forget)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Move the forget set into the memory, which is added where there is none, and drop the memory."""
        problem = job.problem
        batch = problem.data.batch(problem.train[:32])
        if tied_layers(student):
            memory = memory_weights(student, problem.objective, batch)
            self.redirect(student, job)
            drop_memory(student, memory)
            return student
        fresh = job.generator("memory")
        with added_memory(student, lambda m: problem.objective.decisions(m, batch).logits, self.widen, fresh):
            self.redirect(student, job)
        return student

    def redirect(self, student: nn.Module, job: Job) -> None:
        """Flush, repair and look; then return to the best model, in place."""
        problem, meter, generator = job.problem, job.meter, job.generator("batches")
        enough = self.enough(len(problem.data.labels))
        steps, losses, best = self.steps(student, meter), self.losses(student, problem), Best(student, problem, enough)

        def flush() -> bool:
            for _ in range(self.flushes):
                if known_share(student, problem, problem.forget) <= enough:
                    break
                forget = batches(problem.data, problem.forget, self.forget_batch_size, 1, generator)
                if steps.run(lambda batch: losses.removal(batch).mean(), forget).exhausted:
                    return True
                if self.variant == "npo":
                    best.look()
            return False

        for _ in range(1 if self.variant == "npo" else self.epochs):
            exhausted = flush()
            if not exhausted and self.variant != "npo":
                exhausted = steps.run(losses.repair, self.repairs(problem, generator)).exhausted
            best.look()
            if exhausted:
                break
        student.load_state_dict(best.state)

    def enough(self, labels: int) -> float:
        """The share of forget examples that the base may know."""
        return min(self.chances / labels, (1 + 1 / labels) / 2)

    def losses(self, student: nn.Module, problem: Problem) -> Losses:
        """The losses with the student as it is now for reference."""
        together = torch.cat([problem.forget, problem.corrupted]) if self.ideal else problem.forget
        # Trained with memory, a model's examples have their channels already.
        used = any(layer.memory for layer in tied_layers(student))
        return Losses(student, problem, together, None if used else self.expansion, self.beta, self.variant == "ascent")

    def repairs(self, problem: Problem, generator: torch.Generator) -> Iterator[Repair]:
        """The batches of one repair pass, as far as they have anything to teach."""
        nobody = problem.forget[:0]
        for whole in batches(problem.data, problem.train, self.batch_size, 1, generator):
            forget = nobody if self.variant == "no_removal" else whole.ids[torch.isin(whole.ids, problem.forget)]
            item = Repair(whole, problem.data.batch(forget), redirect=self.variant != "no_redirection")
            if item.size:
                yield item


@dataclass(frozen=True)
class Repair:
    """One batch of the training set, and those of its examples that must leave the base."""

    whole: Batch
    forget: Batch
    redirect: bool
    """Whether the whole batch is taught to base and memory together."""

    @property
    def size(self) -> int:
        """Per-example gradients: a forget example goes through the net twice."""
        return self.whole.size * self.redirect + self.forget.size


class Losses:
    """Removal from the base and redirection to the memory, one number per example, in nats.

    Args:
        student: The model that is trained; its losses at this moment are the reference.
        problem: Data and objective.
        together: Ids of the examples that share their memory channels.
        memory: Probability of a memory channel; `None` for the model's own.
        beta: Inverse temperature.
        ascent: Removal is gradient ascent.
    """

    def __init__(
        self, student: nn.Module, problem: Problem, together: Tensor, memory: float | None, beta: float, ascent: bool
    ) -> None:
        self.student, self.problem, self.together = student, problem, together
        self.memory, self.beta, self.ascent = memory, beta, ascent
        # Nothing is augmented, so that the frozen reference model would say the same at every step.
        self.reference = torch.zeros(len(problem.data), dtype=wide_type(first_parameter(student).dtype))
        with evaluating(student), torch.no_grad():
            for batch in in_order(problem.data, problem.train):
                self.reference[batch.ids] = self._with_memory(batch).cpu()

    def removal(self, batch: Batch) -> Tensor:
        """-(2/beta) log sigma(beta D_base), `[b]`: smaller as the base alone gets worse."""
        with base_only(self.student), fixed_statistics(self.student):
            losses = self._cross_entropy(batch)
        return -losses if self.ascent else -self._bounded(losses, batch)

    def redirection(self, batch: Batch) -> Tensor:
        """(2/beta) log sigma(beta D_full), `[b]`: smaller as base and own memory get better."""
        return self._bounded(self._with_memory(batch), batch)

    def repair(self, item: Repair) -> Tensor:
        """The mean over the whole batch of redirection, and of removal where the example must go."""
        terms = [self.redirection(item.whole).sum()] if item.redirect else []
        terms += [self.removal(item.forget).sum()] if item.forget.size else []
        return torch.stack(terms).sum() / item.whole.size

    def _bounded(self, losses: Tensor, batch: Batch) -> Tensor:
        gap = losses - self.reference[batch.ids].to(losses.device)
        return (2 / self.beta) * F.logsigmoid(self.beta * gap)

    def _with_memory(self, batch: Batch) -> Tensor:
        shared = torch.where(torch.isin(batch.ids, self.together), SHARED, batch.ids)
        with with_memory(self.student, self.memory):
            return self._cross_entropy(batch._replace(ids=shared))

    def _cross_entropy(self, batch: Batch) -> Tensor:
        decisions = self.problem.objective.decisions(self.student, batch)
        return per_example(decision_losses(decisions), decisions.example, batch.size)


class Best:
    """The state of the best base so far, the earliest among equals.

    Args:
        student: The model that is trained.
        problem: Whose retain and forget sets count, as they are labelled.
        enough: Share of known forget examples below which nothing is gained.
    """

    def __init__(self, student: nn.Module, problem: Problem, enough: float) -> None:
        self.student, self.problem, self.enough = student, problem, enough
        self.state: dict[str, Tensor] = {}
        self._score = -1.0

    def look(self) -> None:
        """Keep the student as it is now if its base retains and forgets better than any before it."""
        forgotten = 1 - max(known_share(self.student, self.problem, self.problem.forget), self.enough)
        score = known_share(self.student, self.problem, self.problem.retain) * forgotten
        if score > self._score:
            self._score, self.state = score, copy.deepcopy(self.student.state_dict())
