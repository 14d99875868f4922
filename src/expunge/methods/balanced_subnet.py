"""Switch off the few weights that the forget set needs and the retain set does not (Sakarvadia et al., 2410.02159).

Minimises sum_x sign(x) l(x) over batches of both sets, with sign -1 for forget examples and +1 for retain examples, by
scores s of the weights alone. Each step, the `share` of a layer's weights with the lowest |s| is switched off. Weights
and biases are frozen. In the end the mask is multiplied into the weights.

The mask is made anew from the scores at each step, so a weight that was switched off is restored when its score rises.
The gradient passes straight through the ranking, to |s|. Scores start uniform (Kaiming, a = sqrt(5)), as in published
code, and have its optimiser: SGD with rate 0.1, momentum 0.9 and weight decay 5e-4.

`weight` is the loss weight w that the paper of the curvature edit (2510.24256) tunes: 2 (1 - w) l for retain and -2 w l
for forget examples. No code with this weight was found, so which of the two terms it multiplies there is not known. At
0.5 both readings are the published loss. In each epoch the pool is the forget set and as many random retain examples
(times `retain_per_forget`), shuffled. Norms use their running statistics, and dropout is off.

Cost: one gradient per example of the pool and epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.part import Count, NonNegative, Positive, Share
from expunge.blocks.mask import masked_weights
from expunge.core.data import Batch
from expunge.core.job import Job
from expunge.methods._descent import Descent, Steps
from expunge.train.loop import batches
from expunge.train.matrices import matrices
from expunge.train.optim import OptimizerName, make_optimizer


@dataclass(frozen=True)
class BalancedSubnet(Descent):
    """A learned mask of weights against the forget set."""

    cite: ClassVar[str] = "sakarvadia2025mitigating"
    paper: ClassVar[str] = "BalancedSubnet, 2025"
    effort: ClassVar[str] = "2 F E"
    adapts: ClassVar[bool] = False

    epochs: Count = 5
    """Passes over the forget set."""
    learning_rate: Positive = 0.1
    """Step size of the scores."""
    batch_size: Count = 64
    """Examples of both sets per step."""
    optimizer: OptimizerName = "sgd"
    """`adam`, `adamw` or `sgd`."""
    weight_decay: NonNegative = 5e-4
    """Coefficient of the squared norm of the scores."""
    layers: list[str] = field(default_factory=lambda: ["**"])
    """Paths of the layers to mask, or patterns: `*` matches within one step of a path, `**` any number of steps."""
    share: Share = 0.01
    """Share of each layer's weights that is switched off."""
    weight: Share = 0.5
    """Weight of the forget set's loss; that of the retain set has one minus it."""
    retain_per_forget: Count = 1
    """Retain examples per forget example in each epoch."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without layers to mask.

        Raises:
            SpecError: A pattern matches nothing, or the weights are on `meta`.
            MissingError: No layer that matches can be masked.
        """
        matrices(model, self.layers)

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One per example of the pool and epoch."""
        return self.epochs * (forget + min(retain, self.retain_per_forget * forget))

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Train the scores, then multiply the masks into the weights."""
        layers, parameters = matrices(student, self.layers), list(student.parameters())
        trainable = [parameter.requires_grad for parameter in parameters]
        student.eval()
        with masked_weights(layers, self.share, job.generator("scores")) as scores:
            for parameter in parameters:
                parameter.requires_grad_(False)
            optimizer = make_optimizer(self.optimizer, scores, self.learning_rate, self.weight_decay)
            steps = Steps(scores, optimizer, job.meter, self.accumulate)
            steps.run(lambda batch: self._loss(student, job, batch), self._pool(job))
        for parameter, trains in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(trains)
        return student

    def _loss(self, student: nn.Module, job: Job, batch: Batch) -> Tensor:
        losses = job.problem.objective.losses(student, batch)
        forget = torch.isin(batch.ids, job.problem.forget).to(losses.device)
        return (torch.where(forget, -2 * self.weight, 2 * (1 - self.weight)) * losses).sum()

    def _pool(self, job: Job) -> Iterator[Batch]:
        problem, generator = job.problem, job.generator("batches")
        count = self.retain_per_forget * len(problem.forget)
        for _ in range(self.epochs):
            chosen = problem.retain[torch.randperm(len(problem.retain), generator=generator)[:count]]
            ids = torch.cat([problem.forget, chosen])
            yield from batches(problem.data, ids, self.batch_size, 1, generator)
