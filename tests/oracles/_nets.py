"""Small nets of every layer type in the library, in double precision and evaluation mode, each with a batch for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.data import Data
from expunge.models.cnn import CNN
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.models.resnet9 import ResNet9
from expunge.models.vit import ViT

# Sums of some hundred terms in float64, a few layers deep.
EXACT = {"rtol": 1e-9, "atol": 1e-11}

Batch = tuple[Tensor, Tensor]

ARCHITECTURES: dict[str, Any] = {
    "mlp": MLP(widths=[3]),
    "cnn_group": CNN(width=2, hidden=4),
    "cnn_batch": CNN(width=2, hidden=4, norm="batch"),
    "cnn_none": CNN(width=2, hidden=4, norm="none"),
    "gpt": GPT(width=4, layers=1, heads=2),
    "vit": ViT(patch=4, width=4, depth=1, heads=2),
    "resnet9": ResNet9(width=1, norm="batch"),
}
DENSE = [name for name in ARCHITECTURES if name != "resnet9"]


def net(name: str, count: int = 7) -> tuple[nn.Module, Batch]:
    """A net with weights, biases, scales and running statistics away from where they start, and so many examples."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 1, 12, 12, generator=generator).double()
    targets = torch.randint(0, 3, (count,), generator=generator)
    data = Data(inputs, targets, torch.arange(count), torch.arange(count), ("a", "b", "c"))
    if name == "gpt":
        text = torch.randint(0, 5, (count, 7), generator=generator)
        data = Data(text[:, :-1], text[:, 1:], data.train, data.test, tuple("abcde"))
    torch.manual_seed(0)
    model = ARCHITECTURES[name](data).double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model, (data.inputs, data.targets)


def flat_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each example's cross-entropy, for a language model the sum over its tokens with different weights."""
    each = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none").view(len(targets), -1)
    return each @ torch.linspace(1, 2, each.shape[1], dtype=each.dtype)


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return flat_losses(model(batch[0]), batch[1])


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return losses(model, batch).mean()


def cut(batch: Batch, *sizes: int) -> list[Batch]:
    """Batches of these sizes."""
    return list(zip(batch[0].split(sizes), batch[1].split(sizes), strict=True))


def per_example_gradients(model: nn.Module, batch: Batch, parameters: list[nn.Parameter]) -> Tensor:
    """`[n, p]`, one backward pass each."""
    found = []
    for one in cut(batch, *[1] * len(batch[0])):
        slopes = torch.autograd.grad(losses(model, one).sum(), parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(found)
