"""Parts of the study `bilinear`: networks of one size, operators that are read back, and flows that follow the law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.studies.bilinear import adverse, modular, operation, setup, structure
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


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Apart(nn.Module):
    """Weights of its own for each control."""

    def __init__(self, task: setup.LearningTask) -> None:
        super().__init__()
        self.operators = nn.Parameter(task.operators.clone())
        self.body = nn.Module()
        self.body.out = nn.Identity()

    def forward(self, control, state):
        return self.body.out(torch.einsum("nk,kij,nj->ni", control, self.operators, state))


def test_the_mixing_index_of_known_networks():
    task = TASKS["so3"]
    assert structure.mixing_index(Apart(task), task, generator()) == pytest.approx(0, abs=1e-6)
    deaf = setup.Network("relu", 4, 3, 3, task.size)
    with torch.no_grad():
        deaf.body[0].weight[:, :4] = 0
    # Without the control all answers are one; only the weights that would read a control are its own.
    assert 0.7 < structure.mixing_index(deaf, task, generator()) < 1 - 1 / 4


def test_the_effective_rank_counts_directions():
    task = TASKS["so2"]
    exact = Apart(task)
    assert 1.9 < structure.effective_rank(exact, task, generator()) <= 2
    with torch.no_grad():
        exact.operators[:, 1:] = 0
    assert structure.effective_rank(exact, task, generator()) == pytest.approx(1, abs=1e-6)


def test_horizons():
    task = TASKS["so2"]
    assert structure.horizon(Exact(task), task, generator()) == structure.LIMIT
    grown = Exact(setup.LearningTask(1.01 * task.operators, task.states, task.size))
    assert structure.horizon(grown, task, generator()) == 9  # 1.01^10 > 1.1 > 1.01^9


@pytest.mark.parametrize("method", structure.METHODS)
def test_gradient_methods_forget_the_control_of_a_copy(method):
    task = TASKS["so2"]
    draw = setup.batches(task, generator(), torch.ones(4))
    net = setup.train(setup.Network("relu", 4, 2, 2, task.size), draw, 150)
    before = setup.errors_by_control(net, task, generator())
    student = structure.unlearned(net, task, method, 150, generator())
    after = setup.errors_by_control(student, task, generator())
    assert before[setup.FORGOTTEN] < 0.2 and after[setup.FORGOTTEN] > 0.7
    assert setup.errors_by_control(net, task, generator()) == before


def test_an_operation_is_removed_and_no_other():
    torch.manual_seed(0)
    net = operation.network("bilinear", 5)
    operation.fit(net, 5, 60)
    sums, products = operation.tables(5).values()
    edited = operation.removed(net, 5)
    assert operation.size(edited, products) < 1e-9 * operation.size(net, products)
    assert operation.accuracy(edited, sums) == operation.accuracy(net, sums) > 0.9
    predicted, measured = operation.collateral(net, edited, 5)
    assert abs(predicted - measured) < 1e-12


def test_the_oblique_projector_costs_less():
    costs = adverse.correlated_collateral(generator())
    assert all(predicted == pytest.approx(measured, rel=1e-9) for predicted, measured in costs.values())
    assert costs["oblique"][1] < costs["orthogonal"][1]


def test_the_changes_of_one_block_are_those_of_the_answers():
    """If the first block is empty, the certificate of the last is the model's."""
    net = adverse.Stacked(4, 3, 8).double()
    with torch.no_grad():
        net.first.out.weight.zero_(), net.first.out.bias.zero_()
        found = adverse.composed(net, setup.LearningTask(TASKS["so3"].operators.double(), lambda n, g: (
            torch.randn(n, 3, generator=g, dtype=torch.float64)), 0), generator())  # fmt: skip
    assert found["predicted"] == pytest.approx(found["measured"], rel=1e-9) and found["measured"] > 0
