"""Sharpness under minibatches: that of the whole loss, and that of single batches along their own gradients."""

from __future__ import annotations

import torch
from torch import nn

from expunge.numerics.linops import differentiable, hessian
from expunge.studies.edge_of_stability.setup import Examples, minibatches, squared
from expunge.train.loop import fit
from expunge.train.monitors import SharpnessMonitor

PROBES = 8
"""Batches over which the curvature along their gradients is averaged."""


def batch_sharpness(
    model: nn.Sequential,
    batch: Examples,
    rate: float,
    size: int,
    steps: int,
    every: int,
    generator: torch.Generator,
) -> tuple[list[float], list[float]]:
    """Train by minibatches and read both sharpnesses every `every` steps, in units of 2 / step size.

    Returns:
        The sharpness of the whole loss, and the mean over batches of g^T H g / |g|^2 with the batch's own g and H.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    monitor = SharpnessMonitor(squared, [batch], optimizer, every=every)
    single: list[float] = []
    probes = torch.Generator().manual_seed(int(torch.randint(0, 2**31, (1,), generator=generator)))

    def read(step: int, _: float) -> None:
        monitor(step, model)
        if step % every == 0:
            single.append(_along_own(model, batch, size, probes) * rate / 2)

    stream = minibatches(batch, size, steps, generator)
    fit(list(model.parameters()), lambda item: squared(model, item), stream, optimizer, on_step=read)
    whole = [value / edge for value, edge in zip(monitor.sharpness, monitor.edges, strict=True)]
    return whole, single


def _along_own(model: nn.Sequential, batch: Examples, size: int, generator: torch.Generator) -> float:
    parameters, total = differentiable(model), 0.0
    for _ in range(PROBES):
        part = batch.at(torch.randperm(batch.size, generator=generator)[:size])
        slopes = torch.autograd.grad(squared(model, part), parameters)
        flat = torch.cat([slope.flatten() for slope in slopes])
        product = hessian(squared, model, parameters, [part])
        total += float(flat @ product(flat)) / float(flat @ flat)
    return total / PROBES
