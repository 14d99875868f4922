"""One of two operations removed: sums and products modulo p in one network, by which operation it is told to apply.

The left input is one-hot over operation and first operand, the right one over the second operand. Operands are 1 to
p - 1, so that no answer of a product is more frequent than the others, and 0, which zero logits give, is none.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.blocks.bilinear import BilinearLayer
from expunge.numerics.bilinear import predict_collateral
from expunge.studies.bilinear.setup import Network
from expunge.studies.bilinear.structure import steps_until

NAMES = ("bilinear", "relu", "swiglu")
HIDDEN = 96
KNOWN = 0.9
"""Accuracy from which an operation counts as relearned."""


@dataclass(frozen=True)
class OperationPairs:
    """All pairs of one operation."""

    left: Tensor
    right: Tensor
    answers: Tensor


def tables(p: int) -> dict[str, OperationPairs]:
    """Sums and products of all pairs of operands."""
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(1, p), torch.arange(1, p), indexing="ij"))
    answers = {"sums": (a + b) % p, "products": a * b % p}
    right = F.one_hot(b, p).float()
    return {
        name: OperationPairs(F.one_hot(place * p + a, 2 * p).float(), right, answer)
        for place, (name, answer) in enumerate(answers.items())
    }


def network(name: str, p: int) -> Network:
    """A fresh network for both operations."""
    return Network(name, 2 * p, p, p, HIDDEN * 4 * p)


def fit(net: nn.Module, p: int, steps: int, *, until_known: bool = False) -> int:
    """Train on both operations, optionally only until products are known; returns the number of steps."""
    both = list(tables(p).values())
    products = both[1]

    def known() -> bool:
        return until_known and accuracy(net, products) >= KNOWN

    def loss() -> Tensor:
        return torch.stack([_loss(net, table) for table in both]).sum()

    return steps_until(net, loss, known, most=steps, every=2, optimizer=_adam(net))


def removed(net: Network, p: int) -> Network:
    """The bilinear network without products, in closed form, with new factors."""
    edited = copy.deepcopy(net).double()
    layer = edited.body
    assert isinstance(layer, BilinearLayer)
    ours = torch.diag((torch.arange(2 * p) >= p).double())
    whole = torch.eye(p, dtype=torch.float64)
    for direction in torch.eye(p, dtype=torch.float64):
        layer.remove_subspace(direction, ours, whole)
    layer.refactor()
    return edited


def forgotten(net: nn.Module, p: int, steps: int, *, retained: bool) -> nn.Module:
    """A copy trained to answer products evenly, with or without sums in the loss."""
    student = copy.deepcopy(net)
    sums, products = tables(p).values()

    def loss() -> Tensor:
        even: Tensor = -F.log_softmax(student(products.left, products.right), 1).mean()
        return even + _loss(student, sums) if retained else even

    steps_until(student, loss, lambda: False, most=steps, every=1, optimizer=_adam(student))
    return student


@torch.no_grad()
def accuracy(net: nn.Module, table: OperationPairs) -> float:
    """Share of right answers."""
    return float((_logits(net, table).argmax(1) == table.answers).double().mean())


@torch.no_grad()
def size(net: nn.Module, table: OperationPairs) -> float:
    """Norm of the logits of all pairs."""
    return float(_logits(net, table).norm())


@torch.no_grad()
def collateral(before: Network, after: Network, p: int) -> tuple[float, float]:
    """Predicted and measured mean squared change of the logits of sums, relative to their mean square."""
    old, new = (copy.deepcopy(net).double().body for net in (before, after))
    assert isinstance(old, BilinearLayer) and isinstance(new, BilinearLayer)
    sums = tables(p)["sums"]
    left, right = sums.left.double(), sums.right.double()
    change = new.interaction() - old.interaction()
    predicted = predict_collateral(change, left.T @ left / len(left), right.T @ right / len(right))
    was, now = old(left, right), new(left, right)
    whole = float(was.square().sum(1).mean())
    return predicted / whole, float((now - was).square().sum(1).mean()) / whole


def doublings(after: int, fresh: int) -> float:
    """Binary logarithm of a ratio of steps."""
    return math.log2(after / fresh)


def _logits(net: nn.Module, table: OperationPairs) -> Tensor:
    dtype = next(net.parameters()).dtype
    out: Tensor = net(table.left.to(dtype), table.right.to(dtype))
    return out


def _adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.01)


def _loss(net: nn.Module, table: OperationPairs) -> Tensor:
    return F.cross_entropy(net(table.left, table.right), table.answers)
