"""Each method's cost against retraining, on 2,000 images of the demo's data: per-example gradients and seconds.

Every method runs in turn with a retraining, so that the ratio of seconds is of one run.
"""

from __future__ import annotations

import torch

from benchmarks._ratio import compare
from expunge.base import registry
from expunge.core.case import train_model
from expunge.data.fashion_mnist import FashionMNIST
from expunge.methods.retrain import Retrain
from expunge.models.cnn import CNN
from expunge.tasks.hard_examples import HardExamples
from expunge.train.training import TrainedRecipe, Training


def main(repeats: int = 1) -> None:
    torch.set_num_threads(1)
    data = FashionMNIST(train=2000)()
    recipe, task = TrainedRecipe(CNN(), Training(), data), HardExamples(count=80)
    problem = task(data, 0, task.measure(data, recipe, 0))
    original = train_model(recipe, data, problem.train, 0)
    retrain = Retrain()
    whole = retrain(original, problem, recipe, 0).cost.gradients
    for name in registry.names("method"):
        # `checkpoint` reads what was unlearned elsewhere: it has no cost to speak of, and no default file.
        if name in ("retrain", "checkpoint"):
            continue
        method = registry.load("method", name)()
        gradients = method(original, problem, recipe, 0).cost.gradients
        ratio = compare(
            lambda method=method: method(original, problem, recipe, 0),
            lambda: retrain(original, problem, recipe, 0),
            repeats,
        )
        print(f"{name:20} {gradients / whole:.2f} of retraining's gradients, {ratio.best:.2f} of its seconds")


if __name__ == "__main__":
    main()
