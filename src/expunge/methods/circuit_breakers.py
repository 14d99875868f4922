"""Turn the hidden states of the forget set away from the original's, and preserve those of the retain set (2406.04313).

Minimises c_r * hold * MSE(h(x_R), h0(x_R)) + c_u * relu(cos(h(x_F), h0(x_F))), averaged over layers, h0 being the
original's hidden states. At step s of S, from 0, c_r = alpha * (s + 1) / S and c_u = alpha * (1 - (s + 1) / S): the
last step has the retain term only. MSE is the mean over all entries. The cosine is taken for each decision's feature
vector, of an image or of a token. (With the whole batch flattened into one vector, single examples could stay
unchanged.) No label is used. After another method, too, the original is the case's: the states to turn away from are
those of the model that knows the forget set.

With hold = 1 this is the loss in the code of 2505.22310, which reads two hidden states of a ResNet-18, numbers 4 and 7.
There the original is in training mode, so that batch norm treats both models alike at the start. Here the original is
in evaluation mode and the model in training mode, so with batch norm they differ from the start: one uses running
statistics, the other those of the batch. 2406.04313 trains low-rank adapters of language models, uses the norm of the
difference instead of its mean square, and stretches the schedule over twice the steps, so that both terms end with the
same weight. By default, the hidden states are the inputs of two modules with weights, at half depth and the last, among
those that training can change. Layers after the last of these get no gradient.

At the start both gradients are zero: the retain term is at its minimum and the forget term at its maximum. Adam scales
gradients up, so rounding errors are enough for it to leave this point. SGD stays there unless dropout or batch norm
make the models differ. Adam also divides out a common factor of all gradients, so alpha has almost no effect under it.
The setting that matters is `hold`, because the mean square has the unit of squared features and the cosine has none. If
it is too large, the last epochs restore the hidden states of the forget set as well.

Cost: one gradient per retain example and epoch, and one per example of the forget batch with each retain batch. The
forget set is cycled in batches of `forget_batch_size`; the last batch of a pass holds the rest. The teacher is
a forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import MissingError, SpecError
from expunge.base.part import NonNegative, Positive
from expunge.core.features import Features, FeatureSite, half_way_and_last, require_layers
from expunge.core.job import Job
from expunge.core.modules import evaluating
from expunge.core.problem import Problem
from expunge.methods._descent import PairedDescent
from expunge.methods._distill import teacher_of
from expunge.train.loop import PairBatch, batch_count

WHERE = "method.circuit_breakers.layers"


@dataclass(frozen=True)
class CircuitBreakers(PairedDescent):
    """Hidden states of forget become orthogonal to the original's; those of retain are preserved."""

    held: ClassVar[float] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    cite: ClassVar[str] = "zou2024breakers"
    paper: ClassVar[str] = "circuit breakers, 2024"
    effort: ClassVar[str] = "(R + B) E"

    alpha: Positive = 1.0
    """Factor of both terms; almost without effect under Adam."""
    hold: NonNegative = 0.2
    """Weight of the retain term, per squared unit of the features; 2505.22310's 1 is for a ResNet-18."""
    layers: tuple[str, ...] = ()
    """Paths of the modules whose outputs are compared; by default the hidden states at half depth and the last."""

    def pair_loss(self, student: nn.Module, job: Job) -> Callable[[PairBatch], Tensor]:
        """The scheduled sum of both terms.

        Raises:
            SpecError: A layer does not exist, has no features per decision, or depends on no trainable weight.
            MissingError: No layers are named, and no hidden state of the model depends on trainable weights.
        """
        problem, teacher = job.problem, teacher_of(job.original)
        layers = self.chosen(student, problem)
        read, total = Features(problem, layers, WHERE), self.epochs * batch_count(len(problem.retain), self.batch_size)
        steps = itertools.count(1)

        def step(pair: PairBatch) -> Tensor:
            with torch.no_grad():
                retain0, forget0 = (read(teacher, batch)[1] for batch in (pair.retain, pair.forget))
            retain, forget = (read(student, batch)[1] for batch in (pair.retain, pair.forget))
            done = next(steps) / total
            terms = [
                done * self.hold * F.mse_loss(h_r, h0_r) + (1 - done) * aligned(h_f, h0_f)
                for h_r, h0_r, h_f, h0_f in zip(retain, retain0, forget, forget0, strict=True)
            ]
            return self.alpha * torch.stack(terms).mean()

        return step

    def chosen(self, model: nn.Module, problem: Problem) -> list[FeatureSite]:
        """The named layers, or by default those at half depth and the last."""
        if self.layers:
            layers = require_layers(model, self.layers, WHERE)
            self._require_gradients(model, problem, layers)
            return layers
        layers = half_way_and_last(model, problem)
        if not layers:
            raise MissingError(
                "no hidden state depends on trainable weights",
                where=f"model ({type(model).__name__})",
                remedy="name layers, or unfreeze some before the last",
            )
        return layers

    def _require_gradients(self, model: nn.Module, problem: Problem, layers: list[FeatureSite]) -> None:
        with evaluating(model):
            _, features = Features(problem, layers, WHERE)(model, problem.data.batch(problem.test[:2]))
        for layer, rows in zip(layers, features, strict=True):
            if not rows.requires_grad:
                raise SpecError(
                    f"{layer.path!r} depends on no trainable weight", where=WHERE, remedy="name a later layer"
                )


def aligned(features: Tensor, reference: Tensor) -> Tensor:
    """Mean over decisions of relu(cos) between features `[n, ...]` and those of the reference."""
    return F.relu(F.cosine_similarity(features.flatten(1), reference.flatten(1))).mean()
