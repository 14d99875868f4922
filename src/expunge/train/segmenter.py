"""Train an autoencoder on images alone, and take object masks from the phases or directions of its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.base.part import Count, Part, Positive
from expunge.core.data import Data
from expunge.core.modules import first_parameter
from expunge.core.seeding import forked
from expunge.models.syncx import SynCx
from expunge.numerics.object_masks import segments
from expunge.objectives.reconstruction import Reconstruction

CLIP, WARMUP, SLICE = 1.0, 200, 128
"""Largest norm of a gradient, steps until the rate is reached, and images that a net sees at once."""
Term = Callable[[Tensor], Tensor]
"""A further term of the loss, of a batch's images `[b, c, h, w]`."""


@dataclass(frozen=True)
class Schedule(Part):
    """How an autoencoder is trained: by Adam, with a rate that rises during the first two hundred steps."""

    steps: Count = 1500
    """Number of steps."""
    batch_size: Count = 16
    """Images in a step."""
    learning_rate: Positive = 2e-3
    """Rate after the first two hundred steps; 5e-4 in the paper, with many more steps."""


def train_autoencoder(
    net: nn.Module,
    images: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    term: Term | None = None,
) -> nn.Module:
    """Train in place on the mean squared error of every reconstruction that the net returns.

    Args:
        net: From images `[b, c, h, w]` to one reconstruction, or to several `[b, t, c, h, w]`.
        images: `[n, c, h, w]`.
        schedule: Steps, batches and rate.
        generator: Draws the batches; what else is random comes from torch's global generator.
        term: A further term of the loss.

    Returns:
        The net, in evaluation mode.
    """
    images = images.to(first_parameter(net).device)
    optimizer = torch.optim.Adam(net.parameters(), schedule.learning_rate)
    rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    net.train()
    for _ in range(schedule.steps):
        batch = images[torch.randint(len(images), (schedule.batch_size,), generator=generator)]
        output = net(batch)
        loss = (output - (batch.unsqueeze(1) if output.ndim > batch.ndim else batch)).square().mean()
        loss = loss if term is None else loss + term(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        rise.step()
    return net.eval()


def trained_syncx(data: Data, ids: Tensor, width: int, schedule: Schedule, seed: int) -> nn.Module:
    """A SynCx model that was trained on the images of these examples, without labels and masks.

    Raises:
        SpecError: The data are no images, or are too small for the model.
    """
    with forked(seed):
        net = SynCx(width=width, output_scale=0.1)(data.judged_by(Reconstruction()))
        return train_autoencoder(net, data.batch(ids).inputs, schedule, torch.Generator().manual_seed(seed))


@torch.no_grad()
def phase_segments(net: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """Segments of images by the honest protocol, from a net with `directions`: `[n, h, w]`, 0 for the background."""
    parts = (part.to(first_parameter(net).device) for part in images.split(SLICE))
    features = torch.cat([net.directions(part).cpu() for part in parts])  # type: ignore[operator]
    return segments(features, "honest", generator, images=images)
