"""Where a closed form is not the whole answer: correlated inputs, and blocks that are stacked."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.blocks.bilinear import BilinearLayer
from expunge.numerics.bilinear import predict_collateral, projector, remove_subspace
from expunge.studies.bilinear import setup
from expunge.studies.bilinear.flow import HIDDEN, WIDTH, correlated
from expunge.studies.bilinear.setup import FORGOTTEN, LearningTask

SAMPLES = 400


def correlated_collateral(generator: torch.Generator) -> dict[str, tuple[float, float]]:
    """A direction removed from a random form under correlated inputs: predicted and measured, by projector."""
    moments = correlated(generator)
    turn = torch.linalg.cholesky(moments)
    left, right = (torch.randn(SAMPLES, WIDTH, generator=generator, dtype=torch.float64) @ turn.T for _ in range(2))
    w, v, p = (torch.randn(HIDDEN, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3))
    form = torch.einsum("ho,hi,hj->oij", p, w, v)
    basis = torch.randn(WIDTH, 1, generator=generator, dtype=torch.float64)
    second = [x.T @ x / SAMPLES for x in (left, right)]
    found = {}
    for name, sides in (("orthogonal", (None, None)), ("oblique", (second[0], second[1]))):
        change = remove_subspace(form, *(projector(basis, side) for side in sides)) - form
        outputs = torch.einsum("ni,oij,mj->nmo", left, form, right)
        changed = torch.einsum("ni,oij,mj->nmo", left, change, right)
        whole = float(outputs.square().sum(2).mean())
        measured = float(changed.square().sum(2).mean()) / whole
        found[name] = predict_collateral(change, *second) / whole, measured
    return found


class Stacked(nn.Module):
    """Two bilinear blocks on control and state; the first has a residual connection."""

    def __init__(self, controls: int, states: int, hidden: int) -> None:
        super().__init__()
        width = controls + states
        self.first = BilinearLayer(width, hidden, width)
        self.last = BilinearLayer(width, hidden, states)

    def forward(self, control: Tensor, state: Tensor) -> Tensor:
        """The outputs `[b, states]`."""
        x = torch.cat([control, state], -1)
        out: Tensor = self.last(x + self.first(x))
        return out


@torch.no_grad()
def stacked(task: LearningTask, steps: int, generator: torch.Generator) -> dict[str, float]:
    """Two edits of stacked blocks.

    Returns:
        Errors on the control before and after its input was removed from the last block alone. And for an output
        direction removed from each block, the sum of the blocks' own changes beside the change of the answers.
    """
    controls, width, _ = task.operators.shape
    net = Stacked(controls, width, 24)
    with torch.enable_grad():
        setup.train(net, setup.batches(task, generator, torch.ones(controls)), steps)
    net = net.double()
    edited = copy.deepcopy(net)
    basis = torch.eye(controls + width, dtype=torch.float64)[:, FORGOTTEN : FORGOTTEN + 1]
    edited.last.remove_inputs(basis)
    exact = LearningTask(task.operators.double(), lambda n, g: task.states(n, g).double(), task.size)
    errors = [setup.errors_by_control(n, exact, torch.Generator().manual_seed(0))[FORGOTTEN] for n in (net, edited)]
    return {"before": errors[0], "input of the last": errors[1], **composed(net, exact, generator)}


def composed(net: Stacked, task: LearningTask, generator: torch.Generator) -> dict[str, float]:
    """An output direction removed from each block: the sum of their own changes, and the change of the answers."""
    controls = len(task.operators)
    state = task.states(SAMPLES, generator)
    control = F.one_hot(torch.randint(controls, (SAMPLES,), generator=generator), controls).to(state)
    x = torch.cat([control, state], -1)
    was, middle = net(control, state), x + net.first(x)
    predicted = 0.0
    edited = copy.deepcopy(net)
    for layer, inputs in ((edited.first, x), (edited.last, middle)):
        direction = torch.randn(layer.out.out_features, generator=generator, dtype=torch.float64)
        out = layer(inputs)
        layer.remove_direction(direction)
        # What each block's own certificate states: exact for this block, on the inputs that it had.
        predicted += float((layer(inputs) - out).square().sum(1).mean())
    return {"predicted": predicted, "measured": float((edited(control, state) - was).square().sum(1).mean())}
