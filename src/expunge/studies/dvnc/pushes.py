"""Pushes of objects in a 5 x 5 grid, and a graph net that learns them by contrast (C-SWM, 1911.12247; slots are given).

An action pushes one object by one cell; it stays if the cell is taken or outside. The net encodes each object, sums
messages over the others, and predicts the change of each code. The loss pulls the prediction to the next state and
pushes the codes of other states away, hinge 1 and sigma 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.studies.dvnc.setup import PLACES, Chain, Codes, Variant

SIDE = 5
MOVES = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
TRAINED = 5
"""Number of objects in training."""
CODE, HIDDEN, BATCH = 8, 32, 128
HINGE, SIGMA = 1.0, 0.5


@dataclass(frozen=True, eq=False)
class Episodes:
    """States `[n, t + 1, objects]` as cells, and actions `[n, t]` as object * 4 + direction."""

    states: Tensor
    actions: Tensor


def episodes(count: int, steps: int, objects: int, generator: torch.Generator) -> Episodes:
    """Random walks from random states."""
    states = [torch.rand(count, SIDE * SIDE, generator=generator).argsort(1)[:, :objects]]
    actions = torch.randint(4 * objects, (count, steps), generator=generator)
    for step in range(steps):
        states.append(pushed(states[-1], actions[:, step]))
    return Episodes(torch.stack(states, 1), actions)


def pushed(cells: Tensor, actions: Tensor) -> Tensor:
    """The next state: cells `[n, objects]`."""
    rows, who = torch.arange(len(cells)), actions // 4
    at = torch.stack([cells[rows, who] // SIDE, cells[rows, who] % SIDE], 1) + MOVES[actions % 4]
    inside = ((at >= 0) & (at < SIDE)).all(1)
    target = at[:, 0] * SIDE + at[:, 1]
    free = ~(cells == target.unsqueeze(1)).any(1)
    moved = cells.clone()
    moved[rows, who] = torch.where(inside & free, target, cells[rows, who])
    return moved


class GraphNets(nn.Module):
    """The nets of all variants."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        super().__init__()
        nets = len(variants)
        self.encoder = Chain(nets, SIDE * SIDE, HIDDEN, CODE)
        self.edge = Chain(nets, 2 * CODE, HIDDEN, HIDDEN)
        self.node = Chain(nets, CODE + 4 + HIDDEN, HIDDEN, CODE)
        widths = {"messages": HIDDEN, "edges": HIDDEN, "inputs": CODE, "updates": CODE}
        self.codes = nn.ModuleDict({place: Codes(variants, place, widths[place]) for place in PLACES})
        self.nets, self.noise = nets, 0.0
        """`noise`: standard deviation that is added to messages, as a share of theirs."""

    def encode(self, cells: Tensor) -> Tensor:
        """Codes of objects, `[nets, n, objects, CODE]`."""
        seen = F.one_hot(cells.flatten(), SIDE * SIDE).float().expand(self.nets, -1, -1)
        rows: Tensor = self.codes["inputs"](self.encoder(seen))
        return rows.view(self.nets, *cells.shape, CODE)

    def messages(self, state: Tensor) -> Tensor:
        """What each object gets from the others, before its codebook, `[nets, n, objects, HIDDEN]`."""
        objects = state.shape[2]
        pairs = [(i, j) for i in range(objects) for j in range(objects) if i != j]
        i, j = (torch.tensor(side) for side in zip(*pairs, strict=True))
        both = torch.cat([state[:, :, i], state[:, :, j]], -1)
        edges = self.codes["edges"](self.edge(both.flatten(1, 2)))
        summed: Tensor = edges.view(*both.shape[:3], HIDDEN).unflatten(2, (objects, objects - 1)).sum(3)
        return summed

    def step(self, state: Tensor, actions: Tensor) -> Tensor:
        """The predicted codes after an action `[n]`."""
        sums = self.messages(state)
        if self.noise:
            deviation = sums.flatten(1, 2).std(1)[:, None, None]
            drawn = torch.randn(sums.shape[1:], generator=torch.Generator().manual_seed(0))
            sums = sums + self.noise * deviation * drawn
        received = self.codes["messages"](sums.flatten(1, 2)).view(sums.shape)
        pushes = F.one_hot(actions, 4 * state.shape[2]).float().view(len(actions), -1, 4).expand(self.nets, -1, -1, -1)
        change: Tensor = self.codes["updates"](self.node(torch.cat([state, pushes, received], -1).flatten(1, 2)))
        return state + change.view(state.shape)

    def losses(self, states: Tensor, actions: Tensor, after: Tensor) -> Tensor:
        """The contrastive loss of each net, `[nets]`."""
        now, then = self.encode(states), self.encode(after)
        pulled = _energy(self.step(now, actions), then)
        away = (HINGE - _energy(now.roll(1, 1), then)).clamp(min=0)
        return (pulled + away).mean(1)


def _energy(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1).mean(-1) * (0.5 / SIGMA**2)


def trained(variants: Sequence[Variant], seen: int, steps: int, rate: float, seed: int) -> GraphNets:
    """Nets after Adam on batches of `seen` transitions of five objects."""
    generator = torch.Generator().manual_seed(seed)
    data = episodes(seen // 10, 10, TRAINED, generator)
    before, after, actions = data.states[:, :-1].flatten(0, 1), data.states[:, 1:].flatten(0, 1), data.actions.flatten()
    nets = GraphNets(variants).train()
    optimizer = torch.optim.Adam(nets.parameters(), lr=rate)
    for _ in range(steps):
        rows = torch.randint(len(actions), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nets.losses(before[rows], actions[rows], after[rows]).sum().backward()
        optimizer.step()
    return nets.eval()


@torch.no_grad()
def ranks(nets: GraphNets, data: Episodes, steps: int) -> Tensor:
    """Rank of the true state after so many steps, `[nets, queries]`; states that are the same count once."""
    starts = range(data.actions.shape[1] - steps + 1)
    queries = []
    everything, place = data.states[:, 1:].flatten(0, 1).unique(dim=0, return_inverse=True)
    place = place.view(data.actions.shape)
    candidates = nets.encode(everything).flatten(2)
    for start in starts:
        state = nets.encode(data.states[:, start])
        for step in range(steps):
            state = nets.step(state, data.actions[:, start + step])
        distance = torch.cdist(state.flatten(2), candidates)
        own = distance.gather(2, place[:, start + steps - 1].expand(nets.nets, -1).unsqueeze(2))
        queries.append((distance < own).sum(2) + 1)
    return torch.cat(queries, 1)
