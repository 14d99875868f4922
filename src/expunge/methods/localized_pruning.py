"""Prune what a rule says holds the forget set: the siblings of BalancedSubnet (Sakarvadia et al., 2410.02159).

| rule | prunes | score, over the forget set |
| --- | --- | --- |
| `durable` | weights | absolute gradient of the summed loss |
| `greedy` | weights, one a step | w dL/dw with L = retain loss - forget loss, on a mixed batch: by how much L falls |
| `slimming` | neurons | a gate in [0, 1], from 1, that minimises the loss plus `sparsity` times the mean gate |
| `hard_concrete` | neurons | the logit of a gate that is drawn; the penalty is the expected share of open gates |
| `activation` | neurons | absolute mean activation, times the norm of the weights that read it |

The highest scores are pruned, by setting weights to 0. A neuron is an input of the layers that are named, so name the
layers that read neurons, such as the down projections of a transformer; its weights in the layer are pruned. Gates are
learned on the forget set alone, with frozen weights: those that stay open are what it needs.

`slimming`, `hard_concrete` and `activation` come from Chang et al. (2311.09060). A hard concrete gate is
clamp(1.2 sigmoid((logit u + a) / (2 / 3)) - 0.1, 0, 1) with uniform u and logit a, and open with probability
sigmoid(a - 2 / 3 log(0.1 / 1.1)) (Louizos et al., 1712.01312). We have read a table of the rules and not the papers'
code: that the logits start at 2, that `activation` is averaged over all decided tokens before the absolute value is
taken, and that ranks are within a layer for neurons are ours. Published code ends the learning of gates at a loss of
0.1; which loss that is could not be read, so `epochs` ends it. Published `greedy` prunes a share of all weights; on its
models that took hours.

Cost: one gradient per forget example; for gates times `epochs`; for `greedy` a batch for each pruned weight;
`activation` takes forward passes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.base.part import Count, NonNegative, Positive, Share
from expunge.blocks.mask import lowest_off
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.core.modules import evaluating
from expunge.methods._descent import Descent, Steps
from expunge.methods._input_gates import along, gated_inputs
from expunge.numerics.matrices import input_dim
from expunge.numerics.norms import sound_norms
from expunge.train.curvature import mean_inputs
from expunge.train.loop import batches
from expunge.train.loop import in_order as examples_in_order
from expunge.train.matrices import matrices
from expunge.train.optim import make_optimizer

PruningRule = Literal["durable", "greedy", "slimming", "hard_concrete", "activation"]
START = 2.0
"""Initial logits: a gate is open with probability 0.97."""


@dataclass(frozen=True)
class LocalizedPruning(Descent):
    """Pruning of the weights or neurons that hold the forget set."""

    cite: ClassVar[tuple[str, ...]] = ("sakarvadia2025mitigating", "chang2024localization", "louizos2018sparse")
    paper: ClassVar[str] = "Mitigating Memorization, 2025"
    effort: ClassVar[str] = "F to F E"
    adapts: ClassVar[bool] = False

    rule: PruningRule = "durable"
    """How scores are found."""
    layers: list[str] = field(default_factory=lambda: ["**"])
    """Paths of the layers to prune, or patterns: `*` matches within one step of a path, `**` any number of steps."""
    share: Share = 0.01
    """Share of the weights, or of each layer's neurons, that is pruned; not used by `greedy`."""
    across_layers: bool = False
    """Whether `durable` ranks the weights of all layers together, and not those of each layer."""
    steps_of_greedy: Count = 100
    """Weights that `greedy` prunes, one a step."""
    sparsity: NonNegative = 1000.0
    """Weight of the penalty on gates."""
    learning_rate: Positive = 0.1
    """Step size of gates."""
    batch_size: Count = 64
    """Examples per step."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without layers to prune.

        Raises:
            SpecError: A pattern matches nothing, or the weights are on `meta`.
            MissingError: No layer that matches can be pruned.
        """
        matrices(model, self.layers)

    def expected_gradients(self, retain: int, forget: int) -> float:
        """By the rule; see the head of the file."""
        pool = forget + min(retain, forget)
        greedy = self.steps_of_greedy * min(self.batch_size, pool)
        by_rule: dict[str, float] = {"durable": forget, "greedy": greedy, "activation": 0}
        return by_rule.get(self.rule, self.epochs * forget)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Score, then prune."""
        layers = matrices(student, self.layers)
        with evaluating(student), torch.enable_grad():
            if self.rule == "durable":
                self._prune_weights(layers, self._summed(student, job, layers))
            elif self.rule == "greedy":
                self._prune_greedily(student, job, layers)
            elif self.rule == "activation":
                means = mean_inputs(student, job.problem, job.problem.forget, layers)
                scores = {path: _outgoing(layers[path], mean) for path, mean in means.items()}
                _prune_neurons(layers, scores, self.share)
            else:
                _prune_neurons(layers, self._learned(student, job, layers), self.share)
        return student

    def _summed(self, student: nn.Module, job: Job, layers: Mapping[str, nn.Module]) -> list[Tensor]:
        """The gradient of the forget set's summed loss by each layer's weight."""
        weights: list[Any] = [layer.weight for layer in layers.values()]
        total = [torch.zeros_like(weight) for weight in weights]
        for batch in examples_in_order(job.problem.data, job.problem.forget, self.batch_size):
            if not job.meter.affords(batch.size):
                break
            losses = job.problem.objective.losses(student, batch)
            for entry, part in zip(total, _gradients(losses.sum(), weights), strict=True):
                entry.add_(part)
            job.meter.charge(batch.size)
        return total

    def _prune_weights(self, layers: Mapping[str, nn.Module], gradients: list[Tensor]) -> None:
        weights: list[Any] = [layer.weight for layer in layers.values()]
        scores = [gradient.abs() for gradient in gradients]
        if not any(score.any() for score in scores):
            return
        kept = [lowest_off(-score, self.share) for score in scores]
        if self.across_layers:
            flat = lowest_off(-torch.cat([score.flatten() for score in scores]), self.share)
            parts = flat.split([score.numel() for score in scores])
            kept = [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]
        with torch.no_grad():
            for weight, mask in zip(weights, kept, strict=True):
                weight.mul_(mask)

    def _prune_greedily(self, student: nn.Module, job: Job, layers: Mapping[str, nn.Module]) -> None:
        weights: list[Any] = [layer.weight for layer in layers.values()]
        pool = self._pool(job)
        for _ in range(self.steps_of_greedy):
            batch = next(pool)
            if not job.meter.affords(batch.size):
                return
            losses = job.problem.objective.losses(student, batch)
            forget = torch.isin(batch.ids, job.problem.forget).to(losses.device)
            gradients = _gradients((torch.where(forget, -1.0, 1.0) * losses).sum(), weights)
            job.meter.charge(batch.size)
            scores = [weight.detach() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
            best = max(range(len(scores)), key=lambda at: float(scores[at].max()))
            with torch.no_grad():
                weights[best].view(-1)[scores[best].argmax()] = 0

    def _pool(self, job: Job) -> Iterator[Batch]:
        """Batches of the forget set and as many random retain examples, drawn anew for each pass."""
        problem, generator = job.problem, job.generator("batches")
        while True:
            chosen = problem.retain[torch.randperm(len(problem.retain), generator=generator)[: len(problem.forget)]]
            yield from batches(problem.data, torch.cat([problem.forget, chosen]), self.batch_size, 1, generator)

    def _learned(self, student: nn.Module, job: Job, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """The gates, or their logits, after training on the forget set, `[d_in]` by path."""
        random = self.rule == "hard_concrete"
        parameters, generator = list(student.parameters()), job.generator("gates")
        trainable = [parameter.requires_grad for parameter in parameters]
        with gated_inputs(layers, START if random else 1.0) as gates:
            for parameter in parameters:
                parameter.requires_grad_(False)
            learned = [gate.learned for gate in gates]

            def loss(batch: Batch) -> Tensor:
                penalties = [gate.drawn(generator) if random else gate.clipped() for gate in gates]
                task: Tensor = job.problem.objective.loss(student, batch)
                return task + self.sparsity * torch.cat(penalties).mean()

            optimizer = make_optimizer(self.optimizer, learned, self.learning_rate, self.weight_decay)
            problem = job.problem
            items = batches(problem.data, problem.forget, self.batch_size, self.epochs, job.generator("batches"))
            Steps(learned, optimizer, job.meter, self.accumulate).run(loss, items)
        for parameter, trains in zip(student.parameters(), trainable, strict=True):
            parameter.requires_grad_(trains)
        final = [gate.detach() if random else gate.detach().clamp(0, 1) for gate in learned]
        return dict(zip(layers, final, strict=True))


def _outgoing(layer: Any, mean: Tensor) -> Tensor:
    """|mean activation| times the norm of the weights that read it, `[d_in]`."""
    others = [dim for dim in range(layer.weight.ndim) if dim != input_dim(layer)]
    norms: Tensor = layer.weight.detach().double().square().sum(others).sqrt()
    return mean.abs() * norms


def _prune_neurons(layers: Mapping[str, Any], scores: Mapping[str, Tensor], share: float) -> None:
    with torch.no_grad():
        for path, layer in layers.items():
            kept = lowest_off(-scores[path], share).to(layer.weight)
            layer.weight.mul_(along(kept, layer.weight, input_dim(layer)))


def _gradients(value: Tensor, weights: list[Any]) -> tuple[Tensor, ...]:
    with sound_norms():
        return torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
