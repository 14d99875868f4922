"""Parts of the study `bilinear`: networks of one size, operators that are read back, and flows that follow the law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.studies.bilinear import modular, setup
from expunge.studies.bilinear.flow import flow

TASKS = setup.tasks(0, 12)


class Exact(nn.Module):
    def __init__(self, task: setup.LearningTask) -> None:
        super().__init__()
        self.operators = task.operators

    def forward(self, control, state):
        return torch.einsum("nk,kij,nj->ni", control, self.operators, state)


@pytest.mark.parametrize("name", TASKS)
def test_the_true_operators_have_no_error_and_stay_on_track(name):
    task = TASKS[name]
    exact = Exact(task)
    assert setup.operator_error(exact, task) < 1e-6
    assert setup.rollout_error(exact, task, 200, torch.Generator().manual_seed(0)) < 1e-5
    doubled = Exact(setup.LearningTask(2 * task.operators, task.states, task.size))
    if name != "se3":
        assert setup.operator_error(doubled, task) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_networks_have_the_same_number_of_weights(name):
    task = TASKS[name]
    controls, width, _ = task.operators.shape
    counts = [
        sum(p.numel() for p in setup.Network(n, controls, width, width, task.size).parameters()) for n in setup.NETWORKS
    ]
    assert max(counts) / min(counts) < 1.12


def test_flows_of_small_weights_follow_the_law():
    small, large = (flow(s, torch.Generator().manual_seed(0)) for s in (1e-3, 0.1))
    assert small.mixing < 0.2 < large.mixing and small.off_law < 0.02
    assert torch.allclose(small.forms[-1], small.target, atol=0.05)


def test_a_table_of_sums_is_recognised():
    layer = setup.Network("bilinear", 7, 7, 7, 7 * 7 * 21).body
    a, b, c = modular.pairs(7)
    with torch.no_grad():
        layer.left.weight.copy_(a)
        layer.right.weight.copy_(b)
        layer.out.weight.copy_(torch.nn.functional.one_hot(c, 7).float().T)
    net = setup.Network("bilinear", 7, 7, 7, 7 * 7 * 21)
    net.body = layer
    assert modular.operator_error(net, 7) < 1e-3
    assert modular.fourier_share(layer) == pytest.approx(1)
    edited = modular.frequency_removed(layer)
    predicted, measured = modular.collateral(layer, edited, torch.eye(7), torch.eye(7))
    assert predicted == pytest.approx(measured, rel=1e-9) and predicted > 0.1
