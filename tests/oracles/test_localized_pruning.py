"""Each rule of `localized_pruning` against its formula written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from _toy import EXACT, classes, gpt, job, knowing, net, tokens
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.base.errors import MissingError
from expunge.core.data import IGNORE
from expunge.methods._input_gates import InputGate, gated_inputs
from expunge.methods.localized_pruning import LocalizedPruning
from expunge.train.curvature import mean_inputs
from expunge.train.evaluation import known_share


def losses(model: nn.Module, problem, ids: Tensor) -> Tensor:
    batch = problem.data.batch(ids)
    return nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none")


def pruned(before: nn.Module, after: nn.Module, path: str) -> Tensor:
    old, new = (model.get_submodule(path).weight.detach() for model in (before, after))
    assert ((new == old) | (new == 0)).all()
    return (new == 0) & (old != 0)


@pytest.mark.parametrize("together", [False, True])
def test_durable_prunes_the_weights_with_the_largest_gradient_of_the_forget_set(together: bool) -> None:
    model, problem = net(), classes()
    done = LocalizedPruning(share=0.2, across_layers=together, batch_size=4)(model, problem, None, 0)
    weights = [model[0].weight, model[2].weight]
    gradients = [g.abs() for g in torch.autograd.grad(losses(model, problem, problem.forget).sum(), weights)]
    for path, own in zip("02", gradients, strict=True):
        among = torch.cat([g.flatten() for g in gradients]) if together else own.flatten()
        bound = among.sort(descending=True).values[len(among) // 5 - 1]
        assert torch.equal(pruned(model, done.model, path), own >= bound)
    assert done.cost.gradients == len(problem.forget)
    assert torch.equal(done.model[0].bias, model[0].bias)


def test_greedy_prunes_one_weight_after_the_other_by_what_it_does_to_the_loss() -> None:
    model, problem = net(), classes()
    method = LocalizedPruning(rule="greedy", steps_of_greedy=3, batch_size=100)
    done = method(model, problem, None, 0)
    by_hand, pool = net(), method._pool(job(problem, model))
    for _ in range(3):
        ids = next(pool).ids
        sign = torch.where(torch.isin(ids, problem.forget), -1.0, 1.0)
        weights = [by_hand[0].weight, by_hand[2].weight]
        gradients = torch.autograd.grad((sign * losses(by_hand, problem, ids)).sum(), weights)
        falls = [(w * g).detach() for w, g in zip(weights, gradients, strict=True)]
        which = int(falls[1].max() > falls[0].max())
        with torch.no_grad():
            weights[which].view(-1)[falls[which].argmax()] = 0
    for path in "02":
        assert torch.equal(done.model.get_submodule(path).weight, by_hand.get_submodule(path).weight)
    assert done.cost.gradients == 3 * 2 * len(problem.forget)
    short = method(model, problem, None, 0, budget=done.cost.gradients - 1)
    assert sum(int(pruned(model, short.model, path).sum()) for path in "02") == 2


def test_activation_prunes_neurons_by_their_mean_on_decided_tokens_and_what_reads_them() -> None:
    model, problem = gpt(), tokens()
    path = "blocks.0.down"
    given: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0].detach()))
    batch = problem.data.batch(problem.forget)
    model.eval()(batch.inputs)
    hook.remove()
    mean = given[0][batch.targets != IGNORE].mean(0)
    (found,) = mean_inputs(model, problem, problem.forget, {path: model.get_submodule(path)}).values()
    torch.testing.assert_close(found, mean, **EXACT)
    done = LocalizedPruning(rule="activation", layers=[path], share=0.25)(model, problem, None, 0)
    scores = mean.abs() * model.get_submodule(path).weight.norm(dim=0)
    columns = pruned(model, done.model, path).all(0)
    assert set(columns.nonzero().flatten().tolist()) == set(scores.argsort(descending=True)[: len(mean) // 4].tolist())
    assert done.cost.gradients == 0


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), Conv1D(3, 4), nn.Conv2d(4, 3, 2), nn.Conv1d(4, 3, 2)])
def test_a_gate_on_an_input_is_a_gate_on_the_weights_that_read_it(layer: nn.Module) -> None:
    image = isinstance(layer, nn.modules.conv._ConvNd)
    shape = {nn.Conv2d: (2, 4, 5, 5), nn.Conv1d: (2, 4, 5)}.get(type(layer), (2, 6, 4))
    inputs, names = torch.randn(shape), list(layer.state_dict())
    with gated_inputs({"": layer}, 1.0) as (gate,):
        gate.gate = torch.tensor([0.5, 0.0, 1.0, 2.0])
        inside = layer(inputs)
    factors = torch.tensor([0.5, 0.0, 1.0, 2.0]).view(1, 4, *[1] * (len(shape) - 2) if image else ())
    torch.testing.assert_close(inside, layer(inputs * factors), rtol=1e-4, atol=1e-6)
    assert list(layer.state_dict()) == names


def test_a_hard_concrete_gate_is_open_as_often_as_its_penalty_says() -> None:
    gate, draws = InputGate(nn.Linear(6, 1), 0.0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        gate.learned.copy_(torch.tensor([-4.0, -2.0, -0.5, 0.5, 2.0, 4.0]))
    penalty = gate.drawn(draws)
    gates = torch.stack([gate.drawn(draws) * 0 + gate.gate for _ in range(4000)]).detach()
    assert gates.min() == 0 and gates.max() == 1
    # Three standard errors of a share of 4,000.
    torch.testing.assert_close((gates > 0).double().mean(0), penalty.detach().double(), rtol=0, atol=0.024)
    below = torch.sigmoid(-gate.learned.detach() - 2 / 3 * math.log(0.1 / 1.1) * -1)
    torch.testing.assert_close(1 - penalty.detach(), below)


@pytest.mark.parametrize("rule", ["slimming", "hard_concrete"])
def test_gates_that_the_forget_set_needs_stay_open(rule: str) -> None:
    """Only three inputs of the named layer matter for the forget set; the others only cost."""
    needed = torch.tensor([1, 3, 4])
    problem = classes()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(5, 3)).double()
    inputs, targets = problem.data.inputs.clone(), problem.data.targets.clone()
    targets[:6] = torch.arange(6) % 3
    inputs[:6] = nn.functional.one_hot(needed[targets[:6]], 5).double()
    model[1].weight.data = torch.zeros(3, 5).double()
    model[1].weight.data[:, needed] = 4 * torch.eye(3).double()
    problem = replace(problem, data=replace(problem.data, inputs=inputs, targets=targets))
    assert known_share(model, problem, problem.forget) == 1
    method = LocalizedPruning(rule=rule, layers=["1"], share=0.6, sparsity=0.5, epochs=40)
    done = method(model, problem, None, 0)
    assert not done.model[1].weight.any() and known_share(done.model, problem, problem.forget) < 1
    assert done.cost.gradients == method.expected_gradients(len(problem.retain), 6) == 40 * 6
    assert all(parameter.requires_grad for parameter in done.model.parameters())


def test_layers_that_cannot_be_pruned_are_named() -> None:
    with pytest.raises(MissingError, match="LayerNorm"):
        LocalizedPruning(layers=["**.norm1"])(gpt(), tokens(), None, 0)


@pytest.mark.parametrize("rule", ["durable", "greedy"])
def test_it_forgets_more_than_it_keeps_from_others(rule: str) -> None:
    problem = classes()
    everything = replace(problem, forget=problem.train[:-1], retain=problem.train[-1:])
    model = knowing(net(), everything)
    settings = {"durable": {"share": 0.1}, "greedy": {"steps_of_greedy": 6, "batch_size": 100}}[rule]
    done = LocalizedPruning(rule=rule, **settings)(model, problem, None, 0).model
    before, after = (
        [float(losses(m, problem, ids).detach().mean()) for ids in (problem.forget, problem.retain)]
        for m in (model, done)
    )
    assert after[0] > before[0]
    if rule == "greedy":
        assert after[0] - before[0] > after[1] - before[1]
