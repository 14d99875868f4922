"""The adding task, and recurrent modules that speak by attention (RIMs, 1909.10893), many nets side by side.

Of a sequence of numbers two are marked; the answer is their sum. Six LSTM modules read it; at each step the four whose
attention to the input is largest move on, and each hears the others by attention. What it hears passes the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.studies.dvnc.setup import Codes, Variant

UNITS, ACTIVE, SIZE, BATCH = 6, 4, 12, 64


def sequences(count: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and marks `[count, steps, 2]`, one mark in each half; and sums `[count]`."""
    numbers, marks, rows = torch.rand(count, steps, generator=generator), torch.zeros(count, steps), torch.arange(count)
    for low, high in ((0, steps // 2), (steps // 2, steps)):
        marks[rows, torch.randint(low, high, (count,), generator=generator)] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(1)


class Modules(nn.Module):
    """Recurrent modules of all variants."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        super().__init__()
        self.nets = len(variants)
        self.read = self._weights(2 + 1, SIZE)
        self.ask = self._weights(SIZE, SIZE)
        self.gates = self._weights(SIZE + SIZE + 1, 4 * SIZE)
        self.speak = self._weights(SIZE, 3 * SIZE)
        self.out = nn.Parameter(torch.randn(1, UNITS * SIZE, 1).div_(UNITS * SIZE).repeat(self.nets, 1, 1))
        self.shift = nn.Parameter(torch.ones(self.nets, 1, 1))
        self.codes = Codes(variants, "messages", SIZE)

    def _weights(self, inputs: int, outputs: int) -> nn.Parameter:
        """One layer a module, the same at the start for every net: `[nets * UNITS, inputs, outputs]`."""
        return nn.Parameter((torch.randn(UNITS, inputs, outputs) / math.sqrt(inputs)).repeat(self.nets, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Answers `[nets, n]` to sequences `[n, steps, 2]`."""
        count, units = len(inputs), self.nets * UNITS
        hidden = memory = inputs.new_zeros(units, count, SIZE)
        one = inputs.new_ones(units, count, 1)
        # The input of every module at every step at once.
        read = torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1).transpose(0, 1).flatten(0, 1)
        values = torch.bmm(read.expand(units, -1, -1), self.read).view(units, -1, count, SIZE)
        for step in range(inputs.shape[1]):
            value = values[:, step]
            attention = (torch.bmm(hidden, self.ask) * value).sum(-1).div(math.sqrt(SIZE)).sigmoid()
            on = self._active(attention)
            given = torch.cat([value * attention.unsqueeze(-1), hidden, one], -1)
            keep, write, show, new = torch.bmm(given, self.gates).chunk(4, -1)
            moved = (keep + 1).sigmoid() * memory + write.sigmoid() * new.tanh()
            memory = torch.where(on, moved, memory)
            hidden = torch.where(on, show.sigmoid() * moved.tanh(), hidden)
            hidden = hidden + on * self._heard(hidden)
        joined = hidden.view(self.nets, UNITS, count, SIZE).transpose(1, 2).flatten(2)
        return torch.baddbmm(self.shift, joined, self.out).squeeze(-1)

    def _active(self, attention: Tensor) -> Tensor:
        """Which modules are among the `ACTIVE` ones, `[nets * UNITS, n, 1]`."""
        by_net = attention.detach().view(self.nets, UNITS, -1)
        least = by_net.topk(ACTIVE, 1).values[:, -1:]
        return (by_net >= least).view_as(attention).unsqueeze(-1)

    def _heard(self, hidden: Tensor) -> Tensor:
        asked, keys, values = (
            part.view(self.nets, UNITS, -1, SIZE).transpose(1, 2) for part in torch.bmm(hidden, self.speak).chunk(3, -1)
        )
        heard = F.scaled_dot_product_attention(asked, keys, values)
        coded: Tensor = self.codes(heard.flatten(1, 2)).view(heard.shape)
        return coded.transpose(1, 2).reshape(hidden.shape)


def trained(variants: Sequence[Variant], steps: int, length: int, rate: float, seed: int) -> Modules:
    """Nets after Adam on fresh sequences of this length, with a cosine schedule and gradients of norm 1 a net."""
    generator = torch.Generator().manual_seed(seed)
    nets = Modules(variants).train()
    optimizer = torch.optim.Adam(nets.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        inputs, sums = sequences(BATCH, length, generator)
        optimizer.zero_grad()
        (nets(inputs) - sums).square().mean(1).sum().backward()
        clip(nets)
        optimizer.step()
        schedule.step()
    return nets.eval()


def clip(nets: Modules) -> None:
    """Scale each net's gradient to a norm of at most 1, without codebooks, which the task does not reach."""
    shared = [
        p.grad.view(nets.nets, -1) for name, p in nets.named_parameters() if "codes" not in name and p.grad is not None
    ]
    norms = torch.cat(shared, 1).norm(dim=1)
    scale = (1 / norms.clamp(min=1)).unsqueeze(1)
    for gradient in shared:
        gradient.mul_(scale)


@torch.no_grad()
def errors(nets: Modules, count: int, length: int, seed: int) -> list[float]:
    """Mean squared error of each net on fresh sequences; guessing the mean has 0.167."""
    inputs, sums = sequences(count, length, torch.Generator().manual_seed(seed))
    losses: list[float] = (nets(inputs) - sums).square().mean(1).tolist()
    return losses
