"""TAR against nested loops written by hand; what becomes of the adversaries; which way the entropy goes."""

from __future__ import annotations

import copy
import math
from itertools import chain

import pytest
import torch
from _toy import ALL_AT_ONCE, EXACT, classes, cross_entropy, gpt, gradient, job, knowing, linear, net, tokens, vector
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError
from expunge.base.spec import parse
from expunge.core.decisions import loss
from expunge.core.modules import state_digest
from expunge.methods.tar import TAR, entropy, tampered_gradient
from expunge.pipeline.forecast import gradients
from expunge.pipeline.plan import Plan
from helpers import tiny

PROBLEMS = pytest.mark.parametrize("problem, model", [(classes(), net()), (tokens(), gpt())], ids=["net", "gpt"])
WHOLE = {"batch_size": ALL_AT_ONCE, "forget_batch_size": ALL_AT_ONCE}


def test_the_gradient_is_that_of_a_nested_loop_by_hand():
    """Softmax regression: both gradients and Adam written down, batches of one and two examples, two adversaries."""
    problem, model, rate = classes(), linear(), 0.03
    ids = [[[0], [1, 2], [3]], [[4, 5], [0], [2]]]
    batches = [[problem.data.batch(torch.tensor(each)) for each in several] for several in ids]
    total = [torch.zeros(3, 5).double(), torch.zeros(3).double()]
    for several in batches:
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        first, second = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
        for step, (x, y, _) in enumerate(several, start=1):

            def chances(x: Tensor = x, weights: list[Tensor] = weights) -> Tensor:
                return (x @ weights[0].T + weights[1]).softmax(1)

            wrong = (chances() - nn.functional.one_hot(y, 3)) / len(x)
            for w, m, v, g in zip(weights, first, second, (wrong.T @ x, wrong.sum(0)), strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g**2)
                w -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            p = chances()
            # The derivative of sum p log p by a logit is p (log p + H).
            by_logit = p * (p.log() - (p * p.log()).sum(1, keepdim=True)) / len(x)
            for entry, g in zip(total, (by_logit.T @ x, by_logit.sum(0)), strict=True):
                entry += g / 6
    for ours, by_hand in zip(tampered_gradient(model, problem, batches, rate), total, strict=True):
        torch.testing.assert_close(ours, by_hand, **EXACT)


def tanh_states(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [(x @ model[0].weight.T + model[0].bias).tanh()]


def stream_states(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of all positions but the prompt, which is the first."""
    stream = model.blocks(model.tokens(x) + model.positions(torch.arange(x.shape[1])))
    return [stream[:, 1:], model.norm(stream)[:, 1:]]


@pytest.mark.parametrize(
    ("problem", "model", "layers", "states"),
    [
        (classes(), net(), (), tanh_states),
        (classes(), linear(), (), lambda model, x: []),
        (tokens(), gpt(), ("blocks.0", "norm"), stream_states),
    ],
    ids=["net", "linear", "gpt"],
)
def test_two_steps_are_those_of_the_formula(problem, model, layers, states):
    """At the first step the hidden states are those that are held; only the second shows their term."""
    found = TAR(2, 0.1, optimizer="sgd", copies=2, inner_steps=3, alpha=0.7, gamma=1.3, layers=layers, **WHOLE)
    now, velocity, x = copy.deepcopy(model), 0.0, problem.data.inputs[problem.retain]
    held = [state.detach() for state in states(model, x)]
    for _ in range(2):
        sure = 0.0
        for _ in range(2):
            adversary = copy.deepcopy(now)
            optimizer = torch.optim.Adam(adversary.parameters(), lr=1e-3)
            for _ in range(3):
                optimizer.zero_grad()
                cross_entropy(problem, adversary, problem.forget).backward()
                optimizer.step()
                sure = sure + gradient(-surprise(problem, adversary, problem.forget), adversary) / 6
        moved = [((a - b) ** 2).mean() for a, b in zip(states(now, x), held, strict=True)]
        kept = cross_entropy(problem, now, problem.retain) + sum(moved) / max(len(moved), 1)
        # SGD has momentum 0.9 here.
        velocity = 0.9 * velocity + 0.7 * gradient(kept, now) + 1.3 * sure
        nn.utils.vector_to_parameters(vector(now) - 0.1 * velocity, now.parameters())
    torch.testing.assert_close(vector(found(model, problem, None, 0).model), vector(now), rtol=1e-9, atol=1e-11)


def surprise(problem, model, ids) -> Tensor:
    """Entropy of the prediction, written out."""
    p = problem.objective.decisions(model, problem.data.batch(ids)).logits.softmax(1)
    return -(p * p.log()).sum(1).mean()


def test_entropy_is_that_of_the_prediction():
    assert entropy(torch.zeros(4, 9)).item() == pytest.approx(math.log(9))
    assert entropy(torch.tensor([[0.0, 1e5]])).item() == 0
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(5, 3, generator=generator).double().softmax(1)
    torch.testing.assert_close(entropy(p.log() + 2), -(p * p.log()).sum() / 5, **EXACT)


@PROBLEMS
def test_an_adversary_ends_less_sure(problem, model):
    """The papers maximise entropy after the adversary's steps: the other sign would make it surer still."""
    model = knowing(model, problem)
    whole = problem.data.batch(problem.forget)

    def after_attack(found: nn.Module) -> float:
        adversary = copy.deepcopy(found)
        optimizer = torch.optim.Adam(adversary.parameters(), lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            loss(problem.objective.decisions(adversary, whole)).backward()
            optimizer.step()
        return surprise(problem, adversary, problem.forget).item()

    done = TAR(outer_steps=40, learning_rate=0.01, inner_steps=4, alpha=0.0, **WHOLE)(model, problem, None, 0)
    assert after_attack(done.model) > after_attack(model) + 0.05


@PROBLEMS
def test_adversaries_leave_nothing_behind(problem, model):
    batches = [[problem.data.batch(problem.forget)] * 2] * 2
    before = state_digest(model)
    # Adam's state too would show: the second call would start with the first one's moments.
    first, second = (tampered_gradient(model, problem, batches, 0.01) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert state_digest(model) == before and all(parameter.grad is None for parameter in model.parameters())


def test_the_student_is_trained_in_place_and_sees_no_batch_of_an_adversary():
    problem = classes()
    student = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()
    before = vector(student)
    assert TAR(outer_steps=3, **WHOLE).apply(student, job(problem, student)) is student
    assert not torch.equal(vector(student), before)
    # One pass over retain for each outer step, and none besides.
    assert student[1].num_batches_tracked == 3


class Shallow(nn.Linear):
    """A module whose idea of a deep copy is a shallow one: the same parameters."""

    def __deepcopy__(self, memo) -> Shallow:
        return copy.copy(self)


def test_an_adversary_that_is_the_student_is_refused():
    problem = classes()
    with pytest.raises(SpecError, match="shares storage"):
        tampered_gradient(Shallow(5, 3).double(), problem, [[problem.data.batch(problem.forget)]], 0.01)


def test_the_budget_ends_before_an_outer_step_that_it_does_not_afford():
    problem, method = classes(), TAR(outer_steps=9, batch_size=6, forget_batch_size=2, copies=2, inner_steps=3)
    each = 6 + 2 * 2 * 3 * 2
    assert method.expected_gradients(len(problem.retain), len(problem.forget)) == 9 * each
    spent = [method(net(), problem, None, 0, budget=b).cost.gradients for b in (each - 1, 2 * each + 1, 9 * each)]
    assert spent == [0, 2 * each, 9 * each]
    fewer = TAR(outer_steps=2, batch_size=6, forget_batch_size=2, copies=2, inner_steps=3)
    kept = [found(net(), problem, None, 0, budget=2 * each + 1).model for found in (method, fewer)]
    assert state_digest(kept[0]) == state_digest(kept[1])


def test_copies_see_batches_of_their_own():
    rounds = list(TAR(outer_steps=3, forget_batch_size=2, copies=2, inner_steps=3)._rounds(job(classes(), net())))
    ids = [[batch.ids.tolist() for batch in several] for seen in rounds for several in seen.forget]
    # A pass over six examples is three batches: each copy sees all of them, in an order of its own.
    assert all(sorted(chain.from_iterable(several)) == list(range(6)) for several in ids)
    assert len({str(several) for several in ids}) > 3


def test_an_adversary_that_diverges_is_named():
    with pytest.raises(RunError, match=r"adversary.*step 0.*lower inner_learning_rate"):
        TAR(inner_learning_rate=1e308)(net(), classes(), None, 0)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(SpecError, match=r"method\.tar\.layers.*did you mean 'norm'"):
        TAR(layers=("nrom",))(gpt(), tokens(), None, 0)


def test_the_forecast_knows_what_it_costs(tmp_path):
    plan = Plan(parse(tiny(method=[{"name": "tar", "outer_steps": 5}]), tmp_path))
    [stage] = [stage for stage in plan.stages if stage.kind == "unlearn" and stage.seed == 0]
    assert gradients(plan, stage) == 5 * (108 + 2 * 2 * 8 * 12)
