"""U-LiRA's shadow models: MLPs side by side under `torch.func.vmap`, CNNs in processes, each against a loop.

All start from seeds of their own and see their batches in an order of their own, as the pipeline's shadows do; a test
holds that the vmapped trainer gives the loop's losses. One thread in every process. Processes are started before the
clock, as a run starts its workers once for hundreds of stages.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks._ratio import compare
from expunge.base.part import Count
from expunge.core.case import train_model
from expunge.data.digits import Digits
from expunge.data.fashion_mnist import FashionMNIST
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.pipeline.run import default_workers
from expunge.train.ensemble import train_ensemble
from expunge.train.training import TrainedRecipe, Training

MLPS, CNNS = 16, 8


def main(repeats: int = 5) -> None:
    torch.set_num_threads(1)
    for widths, batch_size in (([128], 128), ([128], 32), ([256, 128], 128)):
        print(f"{MLPS} MLPs {widths}, batches of {batch_size}: {mlps(widths, batch_size, repeats)}")
    workers = default_workers()
    print(f"{CNNS} CNNs, {workers} processes: {cnns(workers, max(repeats // 2, 1))}")


def mlps(widths: list[Count], batch_size: int, repeats: int) -> str:
    """The example's data; five of its epochs, since every epoch costs the same."""
    data, seeds = Digits()(), range(MLPS)
    recipe = TrainedRecipe(MLP(widths=widths), Training(epochs=5, batch_size=batch_size), data)
    ratio = compare(
        lambda: train_ensemble(recipe, data, data.train, seeds),
        lambda: [train_model(recipe, data, data.train, seed) for seed in seeds],
        repeats,
    )
    return f"vmap over loop {ratio}"


def cnns(workers: int, repeats: int) -> str:
    """The demo's data and net, one epoch."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare) as pool:
        _prepare()
        ratio = compare(
            lambda: list(pool.map(_train_cnn, range(CNNS))),
            lambda: [_train_cnn(seed) for seed in range(CNNS)],
            repeats,
        )
    return f"processes over loop {ratio}"


_recipe: TrainedRecipe


def _prepare() -> None:
    global _recipe
    torch.set_num_threads(1)
    _recipe = TrainedRecipe(CNN(), Training(epochs=1), FashionMNIST(train=5000)())


def _train_cnn(seed: int) -> None:
    train_model(_recipe, _recipe.data, _recipe.data.train, seed)


if __name__ == "__main__":
    main()
