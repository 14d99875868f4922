"""Shared against per-head codebooks: what carries over to digits that a net never saw, and what deletion costs.

    shared     one codebook of 16 vectors for eight heads
    own        16 vectors for each head
    as many    one codebook for eight heads, of as many vectors as all heads have in `own`

Deletion takes the policy `retain_mean`, with which every kind can reach the target. With zeros the receiver may answer
the deleted class, and losses at unequal forgetting compare nothing.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from expunge.audits.probe import fit_probe
from expunge.blocks import Placed, with_blocks
from expunge.blocks.codebook import Codebook, codebook_layers
from expunge.core.case import train_model
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.methods.delete_codes import DeleteCodes
from expunge.models.mlp import MLP
from expunge.studies.dvnc.digits import CODES, HEADS, LABEL, TARGET, accuracies
from expunge.tasks.whole_class import WholeClass
from expunge.train.evaluation import tracked
from expunge.train.training import TrainedRecipe, Training

KINDS = {
    "shared": Codebook(codes=CODES, heads=HEADS),
    "own": Codebook(codes=CODES, heads=HEADS, shared=False),
    "as many": Codebook(codes=CODES * HEADS, heads=HEADS),
}
NEW = (7, 8, 9)
"""Digits that are left out of training for transfer."""
SHOWN, DRAWS = 8, 10
"""Images of each new digit that a readout learns from, and how often they are drawn."""


def dialled(epochs: int, seed: int) -> dict[str, float]:
    """For each kind of codebook: accuracy on new digits, loss on other digits by deletion, and what is left."""
    data = Digits()()
    problem = WholeClass(label=LABEL)(data, seed, {})
    known = data.train[~torch.isin(data.targets[data.train], torch.tensor(NEW))]
    read: dict[str, float] = {}
    for name, codebook in KINDS.items():
        architecture = with_blocks(MLP(widths=[64, 32]), [Placed(codebook, ("3",), "codebook")])
        recipe = TrainedRecipe(architecture, Training(epochs=epochs, batch_size=64, learning_rate=3e-3), data)
        read[f"{name} transfer"] = _transfer(train_model(recipe, data, known, seed), problem, seed)
        original = train_model(recipe, data, data.train, seed)
        edited = copy.deepcopy(original)
        DeleteCodes(target=TARGET, most=0.9, policy="retain_mean").edit(edited, problem)
        before, after = (accuracies(model, problem) for model in (original, edited))
        read[f"{name} loss"] = before["others"] - after["others"]
        read[f"{name} forgotten"] = after["class"]
    return read


def _transfer(model: nn.Module, problem: Problem, seed: int) -> float:
    """Accuracy of a linear readout from the codes on test images of new digits, the mean over draws of its examples."""
    generator, targets = torch.Generator().manual_seed(seed), problem.data.targets
    train, test = (ids[torch.isin(targets[ids], torch.tensor(NEW))] for ids in (problem.data.train, problem.data.test))
    coded = {"train": _codes(model, problem, train), "test": _codes(model, problem, test)}
    right = []
    for _ in range(DRAWS):
        shuffled = torch.randperm(len(train), generator=generator)
        rows = torch.cat([shuffled[targets[train[shuffled]] == digit][:SHOWN] for digit in NEW])
        readout = fit_probe(coded["train"][rows].double().numpy(), targets[train[rows]].numpy())
        right.append((readout(coded["test"].double().numpy()) == targets[test].numpy()).mean())
    return float(np.mean(right))


def _codes(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    """What the codebook emits, `[n, 32]`."""
    caught: list[Tensor] = []
    (layer,) = codebook_layers(model).values()
    handle = layer.register_forward_hook(lambda _, inputs, output: caught.append(output.detach()))
    tracked(model, problem, ids)
    handle.remove()
    return torch.cat(caught)
