"""C-scores from MLPs side by side under `torch.func.vmap` against the loop that trains them one by one.

Every net sees its own random share of the training set, in an order of its own, as `cscores` prescribes. The two ways
differ by rounding, which training can amplify until single answers change; what becomes of the scores is shown beside
the times, in single precision as in use and in double precision, where they must be the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks._ratio import compare
from expunge.base.part import Count
from expunge.base.seeds import derive
from expunge.core.data import Data
from expunge.data.digits import Digits
from expunge.models.mlp import MLP
from expunge.train.cscore import Counts, cscores, split, tally
from expunge.train.ensemble import train_ensemble
from expunge.train.training import TrainedRecipe, Training

NETS = 16


class Double(MLP):
    """The same net in double precision."""

    def __call__(self, data: Data) -> nn.Sequential:
        return super().__call__(data).double()


def main(repeats: int = 5, epochs: int = 5) -> None:
    torch.set_num_threads(1)
    data = Digits()()
    for widths, batch_size in (([128], 128), ([128], 32), ([256, 128], 128)):
        training = Training(epochs=epochs, batch_size=batch_size)
        print(f"C-scores by {NETS} MLPs {widths}, batches of {batch_size}: {one(data, widths, training, repeats)}")


def one(data: Data, widths: list[Count], training: Training, repeats: int) -> str:
    recipe = TrainedRecipe(MLP(widths=widths), training, data)
    ratio = compare(lambda: together(recipe, data), lambda: cscores(recipe, data, NETS, 0), repeats)
    twice = replace(data, inputs=data.inputs.double())
    return (
        f"vmap over loop {ratio}; in single precision {difference(recipe, data)}, "
        f"in double {difference(TrainedRecipe(Double(widths=widths), training, twice), twice)}"
    )


def together(recipe: TrainedRecipe, data: Data) -> Tensor:
    """`cscores` with all nets at once."""
    seeds = [derive(0, index) for index in range(NETS)]
    seen = [split(data, seed) for seed in seeds]
    ids = torch.stack([data.train[one] for one in seen])
    nets = train_ensemble(recipe, data, ids, [derive(seed, "net") for seed in seeds])
    none = torch.zeros(len(data.train), dtype=torch.int64)
    total = sum((tally(net, data, one) for net, one in zip(nets, seen, strict=True)), Counts(none, none))
    return torch.nan_to_num(total.score, nan=float(total.score.nanmean()))


def difference(recipe: TrainedRecipe, data: Data) -> str:
    gap = (together(recipe, data) - cscores(recipe, data, NETS, 0)).abs()
    return f"{int((gap > 0).sum())} of {len(gap)} scores differ, by {float(gap.max()):.3f} at most"


if __name__ == "__main__":
    main()
