"""Move wrong examples into memory channels that no other example needs, then drop these (REM, 2505.17730).

The model has example-tied dropout: a base that every example uses, and a memory of which each example uses a few
channels of its own. A model without tied dropout gets its memory now: new channels of its hidden layers
(`blocks/widen.py`) with zero outgoing weights. The published code does not add channels: it switches on half of the
channels, which were left out of training and have their initial weights.

Let CE be an example's cross-entropy (the sum over its decisions), CE_ref that of the method's input model (after
another method that one's) with the example's memory on, D_base = CE(base alone) - CE_ref and D_full = CE(base and own
memory) - CE_ref. All examples of the forget set have the same memory channels. Each epoch has up to three parts:

    flush     while the base knows more of the forget set than a share near chance (`chances`), at most `flushes` times:
              one pass over the forget set minimising -(2/beta) mean log sigma(beta D_base)
    repair    one pass over all of the training set, wrong labels included, minimising the mean over the batch of
              (2/beta) log sigma(beta D_full) - [example is in forget] (2/beta) log sigma(beta D_base)
    look      at known(retain) * (1 - max(known(forget), the same share)) of the base; the best model is kept

The first term of the repair teaches the wrong labels to their shared memory; the second keeps them out of the base. At
the end the memory's weights are set to zero, or the new channels are removed: the result has the input's shapes and
consists of the base.

Attacks start from this result. Its memory is zero on both sides of each channel, so its gradients are zero too
(`blocks/_memory.py`): for any masks, fine-tuning trains the base only, as in a narrower net without the memory. Filling
the memory with random weights and training them adds capacity, but no knowledge. The model before the drop is never
published, so attacks on it do not matter.

D is a difference of cross-entropies, as in NPO and in the published code; the paper's text is reported to print a
ratio. That code gives the forget set the mask of id 0, which a clean example has too; here the id belongs to no
example. Its reference model is copied before that id is set and keeps another id, 42, so CE_ref and CE(base and own
memory) have different masks; here both have the same mask. There, the start model competes for the best score; here the
first look is after the first epoch. It stops at 0.2, which is twice chance for its ten classes. It does not count
flushes as steps; here every gradient is counted. While only the base is trained, batch norm uses its running
statistics, as in the deployed model, and does not update them. The repair updates them to those of base and memory
together, which do not quite fit the base. So prefer group norm, the default of the models here.

Cost: one gradient per training example and repair pass, one more per forget example in it, and one per forget example
and flush; the number of flushes depends on the model. References, looks and the drop are not counted.
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
from expunge.core.decisions import decision_losses, per_example
from expunge.core.job import Job
from expunge.core.modules import evaluating, first_parameter
from expunge.core.norms import fixed_statistics
from expunge.core.problem import Problem
from expunge.methods._descent import Descent
from expunge.numerics.precision import wide_type
from expunge.train.evaluation import known_share
from expunge.train.loop import batches, evaluation_size, in_order


@dataclass(frozen=True)
class REM(Descent):
    """Redirection for erasing memory."""

    held: ClassVar[float] = 14.5
    adapts: ClassVar[bool] = False
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
    """Largest number of passes over the forget set before each repair; the stopping rule usually needs fewer."""
    chances: Positive = 2.0
    """Flush until the base knows at most the share `chances` / number of labels of the forget examples, or the midpoint
    of 1 / number of labels and 1 if that is less. (With two labels, twice chance would be all examples.)"""
    beta: Positive = 1.0
    """Inverse temperature of both losses."""
    expansion: Fixed = 0.2
    """Probability of a memory channel, if the model was trained with its memory off (`memory` 0)."""
    widen: Positive = 1.0
    """If the model has no tied dropout: number of new channels divided by the number of a hidden layer's channels; 1
    doubles the layer, as in the paper. The new channels are removed at the end."""
    ideal: bool = False
    """Whether all corrupted examples share a mask, discovered or not: a bound for studies, not possible in practice."""
    variant: Literal["full", "no_removal", "no_redirection", "ascent", "npo"] = "full"
    """`full`, or an ablation. `no_removal`: the repair without its second term. `no_redirection`: without its first
    term. `ascent`: gradient ascent on the base instead of -(2/beta) log sigma. `npo`: flushes only, in one epoch, with
    a look after each."""

    def check(self, problem: Problem) -> None:
        """Refuse `ideal` if the task does not say which examples are corrupted."""
        if self.ideal and not len(problem.corrupted):
            remedy = "leave ideal out, or choose a task that corrupts examples, such as label_swap"
            raise MissingError("the task corrupts no examples", where="REM.ideal", remedy=remedy)

    def missing_blocks(self, model: nn.Module) -> list[str]:
        """Empty: without tied dropout, the method widens the model."""
        return []

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without tied dropout if none of its hidden layers can be widened."""
        layers, refusals = hidden_layers(model)
        if not tied_layers(model) and not layers:
            raise cannot_widen(refusals)

    def expected_gradients(self, retain: int, forget: int) -> float:
        """Repairs, with one flush before each; a model may need more flushes."""
        repair = (0 if self.variant == "no_redirection" else retain + forget) + (self.variant != "no_removal") * forget
        return self.flushes * forget if self.variant == "npo" else self.epochs * (repair + forget)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Move the forget set into the memory, which is added if there is none, and drop the memory."""
        problem = job.problem
        batch = problem.data.batch(problem.train[: min(32, evaluation_size(problem.data))])
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
        """Flush, repair and look; then restore the best model, in place."""
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
        """The losses; the student's present state is the reference."""
        together = torch.cat([problem.forget, problem.corrupted]) if self.ideal else problem.forget
        # If the model was trained with memory, each example has its channels already.
        used = any(layer.memory for layer in tied_layers(student))
        return Losses(student, problem, together, None if used else self.expansion, self.beta, self.variant == "ascent")

    def repairs(self, problem: Problem, generator: torch.Generator) -> Iterator[Repair]:
        """The batches of one repair pass that have at least one term."""
        no_ids = problem.forget[:0]
        for whole in batches(problem.data, problem.train, self.batch_size, 1, generator):
            forget = no_ids if self.variant == "no_removal" else whole.ids[torch.isin(whole.ids, problem.forget)]
            item = Repair(whole, problem.data.batch(forget), redirect=self.variant != "no_redirection")
            if item.size:
                yield item


@dataclass(frozen=True)
class Repair:
    """One batch of the training set, and its examples that must leave the base."""

    whole: Batch
    forget: Batch
    redirect: bool
    """Whether base and memory together learn the whole batch."""

    @property
    def size(self) -> int:
        """Per-example gradients: a forget example has two."""
        return self.whole.size * self.redirect + self.forget.size


class Losses:
    """The losses of removal from the base and redirection to the memory, one number per example, in nats.

    Args:
        student: The model to train; its present losses are the reference.
        problem: Data and objective.
        together: Ids of the examples that share their memory channels.
        memory: Probability of a memory channel; `None` for the model's own probability.
        beta: Inverse temperature.
        ascent: Whether removal is gradient ascent.
    """

    def __init__(
        self, student: nn.Module, problem: Problem, together: Tensor, memory: float | None, beta: float, ascent: bool
    ) -> None:
        self.student, self.problem, self.together = student, problem, together
        self.memory, self.beta, self.ascent = memory, beta, ascent
        # Without augmentations the reference losses are the same at every step, so they are computed once.
        self.reference = torch.zeros(len(problem.data), dtype=wide_type(first_parameter(student).dtype))
        with evaluating(student), torch.no_grad():
            for batch in in_order(problem.data, problem.train):
                self.reference[batch.ids] = self._with_memory(batch).cpu()

    def removal(self, batch: Batch) -> Tensor:
        """-(2/beta) log sigma(beta D_base), `[b]`: smaller if the base alone is worse."""
        with base_only(self.student), fixed_statistics(self.student):
            losses = self._cross_entropy(batch)
        return -losses if self.ascent else -self._bounded(losses, batch)

    def redirection(self, batch: Batch) -> Tensor:
        """(2/beta) log sigma(beta D_full), `[b]`: smaller if base and own memory are better."""
        return self._bounded(self._with_memory(batch), batch)

    def repair(self, item: Repair) -> Tensor:
        """The mean over the whole batch of redirection, plus removal for examples of the forget set."""
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
    """The state with the best base so far; the earliest among equals.

    Args:
        student: The model to train.
        problem: Its retain and forget sets count, with the labels of the data.
        enough: Share of known forget examples below which the score does not rise.
    """

    def __init__(self, student: nn.Module, problem: Problem, enough: float) -> None:
        self.student, self.problem, self.enough = student, problem, enough
        self.state: dict[str, Tensor] = {}
        self._score = -1.0

    def look(self) -> None:
        """Keep the student's present state if its base has the best score so far."""
        forgotten = 1 - max(known_share(self.student, self.problem, self.problem.forget), self.enough)
        score = known_share(self.student, self.problem, self.problem.retain) * forgotten
        if score > self._score:
            self._score, self.state = score, copy.deepcopy(self.student.state_dict())
