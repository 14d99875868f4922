"""Inputs of a bilinear layer on examples, and gradients of the right answers in its outputs; one row per position."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.blocks.bilinear import BilinearLayer
from expunge.core.problem import Problem
from expunge.core.recompute import micro_batches
from expunge.train.loop import in_order

ROWS = 20_000
"""Largest number of the layer's inputs over which side effects are measured."""


def forget_rows(model: nn.Module, layer: BilinearLayer, problem: Problem) -> tuple[Tensor, Tensor]:
    """Inputs of the layer, and gradients of the right answers' logits in its outputs, where these are not zero."""
    inputs, gradients = [], []
    for batch in in_order(problem.data, problem.forget):
        with _caught(layer) as caught, torch.enable_grad(), micro_batches(1):
            decisions = problem.objective.decisions(model, batch)
            logits = decisions.logits
            score = logits.gather(1, decisions.targets[:, None]).sum() - logits.mean(1).sum()
            if not caught:
                raise SpecError("it did not run", where="layer", remedy="name another bilinear layer")
            (gradient,) = torch.autograd.grad(score, caught["output"])
        rows = _rows(gradient, layer)
        used = rows.abs().sum(1) > 0
        inputs.append(_rows(caught["input"], layer)[used])
        gradients.append(rows[used])
    return torch.cat(inputs), torch.cat(gradients)


def retain_rows(model: nn.Module, layer: BilinearLayer, problem: Problem, ids: Tensor) -> Tensor:
    """Inputs of the layer, `[n, d]`; evenly spaced ones if there are many."""
    rows = []
    for batch in in_order(problem.data, ids):
        with _caught(layer) as caught, torch.no_grad(), micro_batches(1):
            problem.objective.decisions(model, batch)
        rows.append(_rows(caught["input"], layer))
    whole = torch.cat(rows)
    return whole[torch.linspace(0, len(whole) - 1, min(len(whole), ROWS)).long()]


@contextmanager
def _caught(layer: BilinearLayer) -> Iterator[dict[str, Tensor]]:
    """Inside, the input and the output of the layer's last run."""
    caught: dict[str, Tensor] = {}

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        caught.update(input=inputs[0], output=output)

    handle = layer.register_forward_hook(keep)
    try:
        yield caught
    finally:
        handle.remove()


def _rows(values: Tensor, layer: BilinearLayer) -> Tensor:
    """One row per position, in double precision, on the CPU."""
    moved = values if layer.dim == -1 else values.movedim(layer.dim, -1)
    return moved.detach().flatten(0, -2).cpu().double()
