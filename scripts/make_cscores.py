"""Make the C-scores that ship with the embedded Fashion-MNIST images.

    python scripts/make_cscores.py [NETS] [WORKERS]

Trains NETS (default 64) default `cnn` nets on random 70 % of the 10,000 images, 8 epochs each, one thread per net, and
stores for each image how many nets held it out and how many of these were right.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
import torch

from expunge.data.fashion_mnist import CSCORES, FashionMNIST
from expunge.models.cnn import CNN
from expunge.train.cscore import Counts, count
from expunge.train.training import TrainedRecipe, Training


@cache
def recipe() -> TrainedRecipe:
    torch.set_num_threads(1)
    return TrainedRecipe(CNN(), Training(epochs=8), FashionMNIST()())


def one(index: int) -> Counts:
    return count(recipe(), recipe().data, index)


def main() -> None:
    nets = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(one, range(nets)))
    right, held_out = (sum(getattr(p, name) for p in parts).numpy().astype(np.uint8) for name in ("right", "held_out"))
    np.savez_compressed(CSCORES, right=right, held_out=held_out)
    score = right / held_out
    print(f"{CSCORES}: {CSCORES.stat().st_size} bytes, mean score {score.mean():.3f}, {(score < 0.1).sum()} below 0.1")


if __name__ == "__main__":
    main()
