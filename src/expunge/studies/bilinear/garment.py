"""A class of Fashion-MNIST removed in closed form from a small CNN with a bilinear head; a probe of what lies below."""

from __future__ import annotations

import copy

import numpy as np
import torch

from expunge.audits.probe import fit_probe
from expunge.blocks import Placed, with_blocks
from expunge.blocks.bilinear import Bilinear, replace
from expunge.core.case import train_model
from expunge.data.fashion_mnist import FashionMNIST
from expunge.methods.remove_modes import RemoveModes
from expunge.models.cnn import CNN
from expunge.tasks.whole_class import WholeClass
from expunge.train.evaluation import outputs
from expunge.train.training import TrainedRecipe, Training

LABEL = 6
"""Shirts, which resemble four other classes."""
HEAD = "10"


def removed(train: int, epochs: int, seed: int) -> dict[str, float]:
    """Share of the class's examples still answered with it, change of accuracy on other classes, and the probe."""
    data = FashionMNIST(train=train)()
    architecture = with_blocks(CNN(width=8, hidden=64), [Placed(Bilinear(hidden=64), (HEAD,), "bilinear")])
    model = train_model(TrainedRecipe(architecture, Training(epochs=epochs), data), data, data.train, seed)
    problem = WholeClass(label=LABEL)(data, seed, {})
    edited = copy.deepcopy(model)
    RemoveModes().edit(edited, problem)
    answers = {m: outputs(m, problem, problem.test).argmax(1) for m in (model, edited)}
    right = {m: float((a == data.targets[problem.test].numpy()).mean()) for m, a in answers.items()}
    seen = torch.cat([problem.forget, problem.holdout])
    still = float((outputs(edited, problem, seen).argmax(1) == LABEL).mean())
    # What the layers below write, which the edit leaves as it is.
    replace(edited, HEAD, torch.nn.Identity())
    features = {name: outputs(edited, problem, ids) for name, ids in (("train", data.train), ("test", data.test))}
    labels = {name: data.targets[ids].numpy() for name, ids in (("train", data.train), ("test", data.test))}
    known = {name: (values == LABEL).astype(np.int64) for name, values in labels.items()}
    read = fit_probe(features["train"], known["train"])(features["test"])
    balanced = float(np.mean([(read == known["test"])[known["test"] == k].mean() for k in (0, 1)]))
    return {"still answered": still, "change elsewhere": right[edited] - right[model], "probe": balanced}
