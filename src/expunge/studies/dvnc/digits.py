"""A class of digits deleted by codes from a classifier; beside it a retrained model and a key-value bottleneck."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.audits.probe import fit_probe
from expunge.blocks import Placed, with_blocks
from expunge.blocks.codebook import Codebook, CodebookLayer, codebook_layers
from expunge.core.case import train_model
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.methods.delete_codes import DeleteCodes
from expunge.models.mlp import MLP
from expunge.tasks.whole_class import WholeClass
from expunge.train.evaluation import tracked
from expunge.train.training import TrainedRecipe, Training

LABEL, HEADS, CODES, TARGET = 3, 8, 16, 0.02
SHOWN, AGAIN = 8, 60
"""Images of the class in relearning, and its steps."""


def deleted(epochs: int, seed: int) -> dict[str, float]:
    """Losses of accuracy on the other digits, what the sender knows, and what comes back."""
    data = Digits()()
    problem = WholeClass(label=LABEL)(data, seed, {})
    read: dict[str, float] = {}
    for name, shared in (("shared", True), ("own", False)):
        block = Placed(Codebook(codes=CODES, heads=HEADS, shared=shared), ("3",), "codebook")
        architecture = with_blocks(MLP(widths=[64, 32]), [block])
        recipe = TrainedRecipe(architecture, Training(epochs=epochs, batch_size=64, learning_rate=3e-3), data)
        original = train_model(recipe, data, data.train, seed)
        retrained = train_model(recipe, data, problem.retain, seed + 1)
        edited = copy.deepcopy(original)
        deletion = DeleteCodes(target=TARGET, most=0.9).edit(edited, problem)
        before, after = (accuracies(model, problem) for model in (original, edited))
        read[f"{name} loss"] = before["others"] - after["others"]
        read[f"{name} forgotten"] = after["class"]
        read[f"{name} deleted"] = deletion.done.codes / deletion.deleted.numel()
        read[f"{name} sender"] = _probe(edited, problem) - _probe(retrained, problem)
        relearned = [_relearned(model, problem, seed) for model in (edited, retrained)]
        read[f"{name} relearned"] = relearned[0] - relearned[1]
        read[f"{name} relearned, retrained"] = relearned[1]
        if not shared:
            read["pairs loss"] = _pairs(original, problem, seed)
    return read


def accuracies(model: nn.Module, problem: Problem) -> dict[str, float]:
    """Shares of right answers on test images of the class and of the other digits."""
    labels = problem.data.targets[problem.data.test]
    sides = {"class": problem.data.test[labels == LABEL], "others": problem.data.test[labels != LABEL]}
    return {name: float(tracked(model, problem, ids).mean()) for name, ids in sides.items()}


def _sent(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    """What the layer before the codebook writes, `[n, 32]`."""
    caught: list[Tensor] = []
    (layer,) = codebook_layers(model).values()
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    tracked(model, problem, ids)
    handle.remove()
    return torch.cat(caught)


def _probe(model: nn.Module, problem: Problem) -> float:
    """Balanced accuracy of a probe of the sender for the class, on test images."""
    sides = {name: (_sent(model, problem, ids), problem.data.targets[ids] == LABEL)
             for name, ids in (("train", problem.data.train), ("test", problem.data.test))}  # fmt: skip
    known = {name: labels.numpy().astype(np.int64) for name, (_, labels) in sides.items()}
    read = fit_probe(sides["train"][0].double().numpy(), known["train"])(sides["test"][0].double().numpy())
    return float(np.mean([(read == known["test"])[known["test"] == side].mean() for side in (0, 1)]))


def _relearned(model: nn.Module, problem: Problem, seed: int) -> float:
    """Share of the class's test images after some steps on retained images and a few of the class."""
    student, generator = copy.deepcopy(model).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(AGAIN):
        ids = problem.retain[torch.randint(len(problem.retain), (56,), generator=generator)]
        batch = problem.data.batch(torch.cat([ids, problem.forget[:SHOWN]]))
        optimizer.zero_grad()
        problem.objective.loss(student, batch).backward()
        optimizer.step()
    return accuracies(student.eval(), problem)["class"]


def _pairs(original: nn.Module, problem: Problem, seed: int) -> float:
    """Loss on the other digits by masking pairs of a discrete key-value bottleneck (2311.15268), at the same target.

    Keys are clusters of what the sender writes, per head, and stay fixed; each has a value for every digit, which is
    trained. The answer is the mean of the values. Pairs are masked in the order of their selectivity.
    """
    labels, train, test = problem.data.targets, problem.data.train, problem.data.test
    sent = {name: _sent(original, problem, ids) for name, ids in
            (("train", train), ("test", test), ("forget", problem.forget), ("retain", problem.retain))}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        keys = CodebookLayer(sent["train"].shape[1], HEADS, CODES, shared=False, kind="ema").train()
        keys(sent["train"])
    index = {name: keys.eval().indices(rows) for name, rows in sent.items()}
    values, heads = torch.zeros(HEADS, CODES, 10, requires_grad=True), torch.arange(HEADS)
    optimizer = torch.optim.Adam([values], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(values[heads, index["train"]].sum(1), labels[train]).backward()
        optimizer.step()

    def right(table: Tensor, name: str, ids: Tensor) -> Tensor:
        return (table[heads, index[name]].sum(1).argmax(1) == labels[ids]).double()

    counts = [F.one_hot(index[name], CODES).double().mean(0) for name in ("forget", "retain")]
    order = (counts[0] / counts[1].clamp(min=1e-9)).flatten().argsort(descending=True)
    table, others = values.detach().clone(), labels[test] != LABEL
    before = float(right(table, "test", test)[others].mean())
    for pair in order:
        if float(right(table, "forget", problem.forget).mean()) <= TARGET:
            break
        table.view(-1, 10)[pair] = 0
    return before - float(right(table, "test", test)[others].mean())


def spread(read: Mapping[str, float], what: str) -> dict[str, float]:
    """One number with a shared codebook and with one a head."""
    return {name: read[f"{name} {what}"] for name in ("shared", "own")}
