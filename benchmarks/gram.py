"""Gram matrix of 512 per-example gradients, against the gradients by `torch.func.vmap` (aims: 5x faster, 10x less).

The demo's CNN and the MLP at their defaults, on Fashion-MNIST images, in float32 on one thread. The opponent computes
all gradients, `[512, p]`, 64 examples at a time, and multiplies them by their transpose. Time is the fastest run of
each, in turn; memory is what a fresh process's peak grows by in its first call (Linux only). The matrices are compared.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.core.data import Batch
from expunge.data.fashion_mnist import FashionMNIST
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.numerics.gram import gram
from expunge.numerics.linops import differentiable

COUNT, CHUNK = 512, 64
MODELS: dict[str, Any] = {"mlp": MLP(), "cnn": CNN()}


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    for name in MODELS:
        ours, theirs = (functools.partial(call, name) for call in (by_factors, by_vmap))
        difference = float((ours() - theirs()).norm() / theirs().norm())
        ratio = compare(ours, theirs, repeats)
        memory = [_peak(call, name) for call in ("by_factors", "by_vmap")]
        print(
            f"gram {name}    {1 / ratio.best:.1f} times faster (aim 5): {ratio}; memory {memory[0]:.0f} against "
            f"{memory[1]:.0f} MB, {memory[1] / memory[0]:.1f} times less (aim 10); relative difference {difference:.0e}"
        )


def by_factors(name: str) -> Tensor:
    model, batch = _prepared(name)
    return gram(_losses, model, differentiable(model), batch).matrix


def by_vmap(name: str) -> Tensor:
    model, batch = _prepared(name)
    weights = {key: value.detach() for key, value in model.named_parameters()}

    def one(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (inputs[None],)), targets[None])

    each = torch.func.vmap(torch.func.grad(one), (None, 0, 0), chunk_size=CHUNK)
    gradients = torch.cat([g.flatten(1) for g in each(weights, batch.inputs, batch.targets).values()], 1)
    return gradients @ gradients.T


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")


@functools.cache
def _prepared(name: str) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    data = FashionMNIST(train=COUNT)()
    return MODELS[name](data).eval(), data.batch(data.train[:COUNT])


def _peak(call: str, name: str) -> float:
    """MB that a fresh process's peak grows by during one call."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_grown, call, name).result()


def _grown(call: str, name: str) -> float:
    torch.set_num_threads(1)
    model, batch = _prepared(name)
    _losses(model, Batch(*(t[:2] for t in batch))).sum().backward()  # what PyTorch loads at its first gradient
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmHWM")
    globals()[call](name)
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """A line of Linux' account of this process, in MB."""
    return float(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


if __name__ == "__main__":
    main()
