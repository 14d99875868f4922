"""Networks and tasks of the study `bilinear`: a control and a state go in, the state after the operator comes out.

Each task is a set of operators, one per control: rotations (SO(2), SO(3)), rigid motions (SE(3), homogeneous), or the
steps of a cycle. Networks see a one-hot control and a state. `bilinear` reads the two on separate sides; `concatenated`
is a bilinear layer, too, but reads both on both sides, as the three rivals do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.blocks.bilinear import BilinearLayer

RIVALS = ("relu", "gelu", "swiglu")
BILINEAR = ("bilinear", "concatenated")
NETWORKS = (*BILINEAR, *RIVALS)
CONTROLS = 4
FORGOTTEN = 2
"""The control to forget."""
BATCH = 256


class Gated(nn.Module):
    """SwiGLU: P [silu(W x) * (V x)], with biases."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gate, self.value, self.out = (
            nn.Linear(inputs, hidden),
            nn.Linear(inputs, hidden),
            nn.Linear(hidden, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The outputs `[b, outputs]`."""
        out: Tensor = self.out(F.silu(self.gate(x)) * self.value(x))
        return out


class Network(nn.Module):
    """One hidden layer between a control (or a first operand) and a state (or a second), and the outputs.

    Args:
        name: One of `NETWORKS`.
        controls: Width of the first input.
        states: Width of the second input.
        outputs: Width of the output.
        size: Number of weights; the hidden layer is as wide as it allows.
    """

    def __init__(self, name: str, controls: int, states: int, outputs: int, size: int) -> None:
        super().__init__()
        self.name, width = name, controls + states
        if name == "bilinear":
            self.body: nn.Module = BilinearLayer(controls, size // (width + outputs), outputs, other=states, bias=False)
        elif name == "concatenated":
            self.body = BilinearLayer(width, _hidden(size, 2 * width + 2 + outputs, outputs), outputs)
        elif name == "swiglu":
            self.body = Gated(width, _hidden(size, 2 * width + 2 + outputs, outputs), outputs)
        else:
            hidden = _hidden(size, width + 1 + outputs, outputs)
            activation = nn.ReLU() if name == "relu" else nn.GELU()
            self.body = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, outputs))

    def forward(self, control: Tensor, state: Tensor) -> Tensor:
        """The outputs `[b, outputs]`."""
        out: Tensor = (
            self.body(control, state) if self.name == "bilinear" else self.body(torch.cat([control, state], -1))
        )
        return out


def _hidden(size: int, per_unit: int, outputs: int) -> int:
    return max(round((size - outputs) / per_unit), 1)


@dataclass(frozen=True)
class LearningTask:
    """Operators `[k, d, d]`, a sampler of states, and the number of weights of every network."""

    operators: Tensor
    states: Callable[[int, torch.Generator], Tensor]
    size: int


def tasks(seed: int, cycle: int) -> dict[str, LearningTask]:
    """The four tasks. Rotations have 0.1 to 0.4 radians about random axes; shifts of the cycle are 1, 2, -1 and -2."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4])
    plane = torch.stack([_rotation2(float(a)) for a in angles])
    axes = F.normalize(torch.randn(CONTROLS, 3, generator=generator), dim=1)
    space = torch.stack(
        [torch.linalg.matrix_exp(float(a) * _cross(axis)) for a, axis in zip(angles, axes, strict=True)]
    )
    moves = torch.eye(4).repeat(CONTROLS, 1, 1)
    moves[:, :3, :3] = space
    # Centres of rotation instead of free translations, so that long rollouts stay bounded.
    centres = 0.5 * torch.randn(3, generator=generator)
    moves[:, :3, 3] = centres - space @ centres
    steps = torch.stack([torch.roll(torch.eye(cycle), s, 0) for s in (1, 2, -1, -2)])
    return {
        "so2": _task(plane, lambda n, g: F.normalize(torch.randn(n, 2, generator=g), dim=1)),
        "so3": _task(space, lambda n, g: F.normalize(torch.randn(n, 3, generator=g), dim=1)),
        "se3": _task(moves, lambda n, g: torch.cat([torch.randn(n, 3, generator=g), torch.ones(n, 1)], 1)),
        "cycle": _task(steps, lambda n, g: torch.eye(cycle)[torch.randint(cycle, (n,), generator=g)]),
    }


def _task(operators: Tensor, states: Callable[[int, torch.Generator], Tensor]) -> LearningTask:
    controls, width, _ = operators.shape
    # Four times the products that small operators need, so that the concatenated form can hold them, too.
    hidden = (4 if width < 10 else 1) * controls * width
    return LearningTask(operators, states, hidden * (controls + 2 * width))


def _rotation2(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]])


def _cross(axis: Tensor) -> Tensor:
    x, y, z = axis.tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


Batches = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""Draws controls, states and wanted outputs."""


def batches(task: LearningTask, generator: torch.Generator, weights: Tensor) -> Batches:
    """Batches with controls drawn by these weights `[k]`."""

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        k = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        states = task.states(BATCH, generator)
        return F.one_hot(k, len(weights)).float(), states, torch.einsum("nij,nj->ni", task.operators[k], states)

    return draw


def train(network: nn.Module, draw: Batches, steps: int, rate: float = 3e-3) -> nn.Module:
    """Adam on the mean squared error, with a cosine schedule to zero."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        control, state, wanted = draw()
        optimizer.zero_grad()
        F.mse_loss(network(control, state), wanted).backward()
        optimizer.step()
        schedule.step()
    return network


@torch.no_grad()
def operators_of(network: nn.Module, task: LearningTask) -> Tensor:
    """The operator that a network applies for each control, `[k, d, d]`, from its answers to unit states.

    On rotations, half the difference of opposite states counts; on rigid motions, the difference to the origin; on the
    cycle, the answers themselves, because no other states occur.
    """
    controls, width, _ = task.operators.shape
    unit = torch.eye(width)
    moves = bool((task.operators[:, -1] == unit[-1]).all())
    columns = []
    for k in range(controls):
        control = F.one_hot(torch.tensor([k]), controls).float().expand(width, -1)
        if moves:
            origin = unit[-1:]
            answers = network(control, torch.cat([unit[:-1] + origin, origin]))
            answers = torch.cat([answers[:-1] - answers[-1:], answers[-1:]])
        elif width < 10:
            answers = (network(control, unit) - network(control, -unit)) / 2
        else:
            answers = network(control, unit)
        columns.append(answers.T)
    return torch.stack(columns)


def operator_error(network: nn.Module, task: LearningTask) -> float:
    """|Q - Q*| / |Q*| over all controls."""
    return float((operators_of(network, task) - task.operators).norm() / task.operators.norm())


@torch.no_grad()
def rollout_error(network: nn.Module, task: LearningTask, steps: int, generator: torch.Generator) -> float:
    """Root mean square error of the state after random controls, relative to the true state; at most 1e6."""
    state = true = task.states(64, generator)
    controls = len(task.operators)
    for _ in range(steps):
        k = torch.randint(controls, (64,), generator=generator)
        state = network(F.one_hot(k, controls).float(), state).clamp(-1e6, 1e6)
        true = torch.einsum("nij,nj->ni", task.operators[k], true)
    error = (state - true).square().mean().sqrt() / true.square().mean().sqrt()
    return min(float(error.nan_to_num(1e6)), 1e6)


@torch.no_grad()
def errors_by_control(network: nn.Module, task: LearningTask, generator: torch.Generator) -> dict[int, float]:
    """Root mean square error of one step, relative to the output, for each control."""
    states = task.states(512, generator)
    errors = {}
    for k, operator in enumerate(task.operators):
        wanted = states @ operator.T
        control = F.one_hot(torch.tensor([k]), len(task.operators)).to(states).expand(512, -1)
        errors[k] = float((network(control, states) - wanted).norm() / wanted.norm())
    return errors


def forget(network: nn.Module, task: LearningTask, steps: int, generator: torch.Generator) -> nn.Module:
    """Fine-tune the output for one control to zero, without data of the others."""
    weights = torch.zeros(len(task.operators))
    weights[FORGOTTEN] = 1
    draw = batches(task, generator, weights)

    def zero() -> tuple[Tensor, Tensor, Tensor]:
        control, state, wanted = draw()
        return control, state, torch.zeros_like(wanted)

    return train(network, zero, steps)


def retained(errors: Mapping[int, float]) -> float:
    """Root mean square over the controls that stay."""
    kept = [e * e for k, e in errors.items() if k != FORGOTTEN]
    return math.sqrt(sum(kept) / len(kept))
