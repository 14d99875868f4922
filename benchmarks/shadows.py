"""U-LiRA's shadow models: CNNs in processes against a loop.

Each net has a seed of its own, as the pipeline's shadows do. Each process has one thread. The processes start before
the clock does, since a run starts its workers once for hundreds of stages.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks._ratio import compare
from expunge.core.case import train_model
from expunge.data.fashion_mnist import FashionMNIST
from expunge.models.cnn import CNN
from expunge.pipeline.run import default_workers
from expunge.train.training import TrainedRecipe, Training

CNNS = 8


def main(repeats: int = 5) -> None:
    torch.set_num_threads(1)
    workers = default_workers()
    print(f"{CNNS} CNNs, {workers} processes: {cnns(workers, max(repeats // 2, 1))}")


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
