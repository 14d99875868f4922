"""What a network's structure says beforehand: of what forgetting costs, of how soon it is undone, and of rollouts.

Networks of five architectures and three initial scales learn the rotations SO(3). Before anything is removed, two
numbers are read off each of them:

    mixing index      share of the energy of the tangent kernel between different controls; 0 if a gradient step for
                      one control leaves the others as they are
    effective rank    exponential of the entropy of the singular values of the hidden units, over controls and states

Then three gradient methods remove a control, and the network is trained again until it is known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from expunge.studies.bilinear import setup
from expunge.studies.bilinear.setup import FORGOTTEN, Batches, LearningTask, Network

SCALES = (0.1, 0.3, 1.0)
"""Factors of the initial weights."""
METHODS = ("forget only", "with retained", "ascent")
LIMIT = 1000
"""Longest horizon."""
OFF = 0.1
"""Error at which a rollout has left the truth, relative to the state."""
PROBED = 16
"""States by which the two numbers are read."""


def networks(task: LearningTask, steps: int, generator: torch.Generator) -> dict[str, nn.Module]:
    """Trained networks by architecture and initial scale."""
    controls, width, _ = task.operators.shape
    draw = setup.batches(task, generator, torch.ones(controls))
    made = {}
    for name in setup.NETWORKS:
        for scale in SCALES:
            network = Network(name, controls, width, width, task.size)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(scale)
            made[f"{name} x {scale:g}"] = setup.train(network, draw, steps)
    return made


def mixing_index(network: nn.Module, task: LearningTask, generator: torch.Generator) -> float:
    """Share of the tangent kernel's energy between different controls."""
    controls = len(task.operators)
    states = task.states(PROBED, generator)
    parameters = dict(network.named_parameters())
    blocks = []
    for k in range(controls):
        control = F.one_hot(torch.tensor([k]), controls).to(states).expand(PROBED, -1)

        def outputs(p: dict[str, Tensor], control: Tensor = control) -> Tensor:
            out: Tensor = functional_call(network, p, (control, states))
            return out.flatten()

        blocks.append(torch.cat([rows.flatten(1) for rows in jacrev(outputs)(parameters).values()], 1).detach())
    energy = torch.stack([torch.stack([(a @ b.T).square().sum() for b in blocks]) for a in blocks])
    return float(1 - energy.diagonal().sum() / energy.sum())


@torch.no_grad()
def effective_rank(network: Network, task: LearningTask, generator: torch.Generator) -> float:
    """Of the hidden units, over all controls and some states."""
    controls = len(task.operators)
    states = task.states(PROBED, generator)
    caught: list[Tensor] = []
    body: Any = network.body
    last = body[-1] if isinstance(body, nn.Sequential) else body.out
    handle = last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    for k in range(controls):
        network(F.one_hot(torch.tensor([k]), controls).to(states).expand(PROBED, -1), states)
    handle.remove()
    values = torch.linalg.svdvals(torch.cat(caught).double())
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def horizon(network: nn.Module, task: LearningTask, generator: torch.Generator) -> int:
    """Number of steps that rollouts stay within `OFF` of the truth, at most `LIMIT`."""
    controls = len(task.operators)
    state = true = task.states(64, generator)
    for step in range(LIMIT):
        k = torch.randint(controls, (64,), generator=generator)
        state = network(F.one_hot(k, controls).float(), state)
        true = torch.einsum("nij,nj->ni", task.operators[k], true)
        # Written so that a state that is not finite counts as off.
        if not (state - true).square().mean() <= OFF**2 * true.square().mean():
            return step
    return LIMIT


def unlearned(network: nn.Module, task: LearningTask, method: str, steps: int, generator: torch.Generator) -> nn.Module:
    """A copy that a gradient method has made forget the control: its output is zero, or off by its own size."""
    student = copy.deepcopy(network)
    if method == "forget only":
        return setup.forget(student, task, steps, generator)
    if method == "with retained":
        draw = setup.batches(task, generator, torch.ones(len(task.operators)))

        def zeroed() -> tuple[Tensor, Tensor, Tensor]:
            control, state, wanted = draw()
            return control, state, wanted * (1 - control[:, FORGOTTEN : FORGOTTEN + 1])

        return setup.train(student, zeroed, steps)
    weights = torch.zeros(len(task.operators))
    weights[FORGOTTEN] = 1
    ascend = setup.batches(task, generator, weights)

    def off() -> bool:
        return setup.errors_by_control(student, task, _seeded())[FORGOTTEN] >= 1

    steps_until(student, lambda: -_loss(student, ascend), off, most=steps, every=1)
    return student


def steps_until(
    network: nn.Module,
    loss: Callable[[], Tensor],
    done: Callable[[], bool],
    *,
    most: int,
    every: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> int:
    """Steps of Adam, by default at 3e-3, until `done`, which is asked after every so many; at most `most`."""
    optimizer = optimizer or torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(1, most + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step % every == 0 and done():
            return step
    return most


def steps_to_learn(
    network: nn.Module, task: LearningTask, generator: torch.Generator, *, below: float, most: int, every: int
) -> int:
    """Steps on all controls until the error of the control to forget is below a bound."""
    draw = setup.batches(task, generator, torch.ones(setup.CONTROLS))

    def known() -> bool:
        return setup.errors_by_control(network, task, _seeded())[FORGOTTEN] < below

    return steps_until(network, lambda: _loss(network, draw), known, most=most, every=every)


@torch.no_grad()
def input_zeroed(network: Network) -> Network:
    """The network without the weights that read the control: what can be deleted without data from any architecture."""
    edited = copy.deepcopy(network)
    body: Any = edited.body
    names = {"swiglu": ("gate", "value"), "bilinear": ("left",), "concatenated": ("left", "right")}
    readers: list[Any] = [getattr(body, name) for name in names.get(edited.name, ())] or [body[0]]
    for reader in readers:
        reader.weight[:, FORGOTTEN] = 0
    return edited


def _loss(network: nn.Module, draw: Batches) -> Tensor:
    control, state, wanted = draw()
    return F.mse_loss(network(control, state), wanted)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
