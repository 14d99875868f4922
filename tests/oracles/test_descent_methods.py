"""Methods that take gradient steps: the first step against the formula, stopping rules, schedules and masks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from _toy import ALL_AT_ONCE, EXACT, classes, cross_entropy, gpt, gradient, job, knowing, linear, net, tokens, vector
from torch import nn

from expunge.base.errors import SpecError
from expunge.base.seeds import derive
from expunge.core.case import Meter
from expunge.core.decisions import loss
from expunge.methods._gradients import summed_gradient
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.l1_sparse import L1Sparse, l1_norm
from expunge.methods.neggrad_plus import NegGradPlus
from expunge.methods.salun import SalUn, largest
from expunge.methods.task_negation import TaskNegation
from expunge.train.evaluation import known_share

RATE = 0.01
# One step over everything at once: with SGD the change is exactly -rate * gradient.
ONE_STEP = {"epochs": 1, "learning_rate": RATE, "optimizer": "sgd", "batch_size": ALL_AT_ONCE}
PAIRED = ONE_STEP | {"forget_batch_size": ALL_AT_ONCE}
PROBLEMS = pytest.mark.parametrize("problem, model", [(classes(), net()), (tokens(), gpt())], ids=["net", "gpt"])


def change(method, model, problem, **options) -> torch.Tensor:
    return vector(method(model, problem, None, 3, **options).model) - vector(model)


@PROBLEMS
def test_neggrad_plus_weighs_the_two_losses(problem, model):
    value = 0.9 * cross_entropy(problem, model, problem.retain) - 0.1 * cross_entropy(problem, model, problem.forget)
    found = change(NegGradPlus(alpha=0.9, **PAIRED), model, problem)
    torch.testing.assert_close(found, -RATE * gradient(value, model), **EXACT)


@PROBLEMS
def test_neggrad_plus_takes_turns_where_asked_to(problem, model):
    """Passes of ascent and of descent, unweighted, with one momentum; two batches in a pass over the forget set."""
    settings = ONE_STEP | {"epochs": 2, "forget_batch_size": len(problem.forget) // 2}
    found = NegGradPlus(alternate=True, **settings)(model, problem, None, 3).model
    order, hand = torch.Generator().manual_seed(derive(3, "batches")), copy.deepcopy(model)
    momentum = torch.zeros_like(vector(model))
    for _ in range(2):
        shuffled = problem.forget[torch.randperm(len(problem.forget), generator=order)]
        torch.randperm(len(problem.retain), generator=order)
        for ids, sign in [*((half, -1) for half in shuffled.chunk(2)), (problem.retain, 1)]:
            momentum = 0.9 * momentum + sign * gradient(cross_entropy(problem, hand, ids), hand)
            nn.utils.vector_to_parameters(vector(hand) - RATE * momentum, hand.parameters())
    torch.testing.assert_close(vector(found), vector(hand), **EXACT)


def test_neggrad_plus_in_turns_costs_each_example_once_an_epoch():
    problem = classes()
    method = NegGradPlus(alternate=True, epochs=3, batch_size=3, forget_batch_size=4)
    assert method(net(), problem, None, 0).cost.gradients == 3 * (18 + 6)
    # Forget batches of 4 and 2, retain batches of 3: which 3 would afford, had the pass before it not ended the run.
    spent = {budget: method(net(), problem, None, 0, budget).cost.gradients for budget in (3, 5, 11, 12, 28)}
    assert spent == {3: 0, 5: 4, 11: 9, 12: 12, 28: 28}


@PROBLEMS
def test_gradient_ascent_climbs_the_forget_loss_only(problem, model):
    model = knowing(model, problem)
    expected = RATE * gradient(cross_entropy(problem, model, problem.forget), model)
    torch.testing.assert_close(change(GradientAscent(**ONE_STEP), model, problem), expected, **EXACT)


def test_gradient_ascent_stops_after_the_first_pass_that_is_enough():
    problem = classes()
    model, method = knowing(net(), problem), GradientAscent(learning_rate=0.01, chances=1.0)
    done = method(model, problem, None, 0)
    passes, rest = divmod(done.cost.gradients, len(problem.forget))
    assert rest == 0 and 1 < passes < method.epochs
    assert known_share(done.model, problem, problem.forget) <= 1 / 3
    before = method(model, problem, None, 0, budget=(passes - 1) * len(problem.forget))
    assert known_share(before.model, problem, problem.forget) > 1 / 3


def test_gradient_ascent_leaves_alone_what_is_not_known():
    problem = classes()
    model = linear()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # says "b" always: chance
    done = GradientAscent(chances=1.0)(model, problem, None, 0)
    assert done.cost.gradients == 0
    assert torch.equal(vector(done.model), vector(model))


@PROBLEMS
def test_l1_sparse_adds_the_sign_of_every_weight(problem, model):
    expected = gradient(cross_entropy(problem, model, problem.retain), model) + 0.3 * vector(model).sign()
    torch.testing.assert_close(change(L1Sparse(gamma=0.3, **ONE_STEP), model, problem), -RATE * expected, **EXACT)


def test_l1_sparse_leaves_a_weight_at_zero_to_the_loss():
    problem, model = classes(), linear()
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0
    pulled, free = (change(L1Sparse(gamma=g, **ONE_STEP), model, problem)[0] for g in (0.3, 0.0))
    assert pulled == free


def test_l1_sparse_fades_by_epoch():
    method = L1Sparse(epochs=4, gamma=0.2)
    assert [method.weight(epoch) for epoch in range(4)] == pytest.approx([0.2, 0.15, 0.1, 0.05], rel=1e-12)
    problem, model = classes(), linear()
    # Two epochs by hand: momentum 0.9, the second with half the pull.
    settings = ONE_STEP | {"epochs": 2}
    hand, momentum = copy.deepcopy(model), torch.zeros(18, dtype=torch.float64)
    for weight in (0.2, 0.1):
        slope = gradient(cross_entropy(problem, hand, problem.retain), hand) + weight * vector(hand).sign()
        momentum = 0.9 * momentum + slope
        nn.utils.vector_to_parameters(vector(hand) - RATE * momentum, hand.parameters())
    found = L1Sparse(gamma=0.2, **settings)(model, problem, None, 0).model
    torch.testing.assert_close(vector(found), vector(hand), **EXACT)


def test_l1_norm_counts_tied_weights_once_and_frozen_ones_never():
    model = gpt()
    assert model.head.weight is model.tokens.weight
    torch.testing.assert_close(l1_norm(model), vector(model).abs().sum(), **EXACT)
    model.tokens.weight.requires_grad_(False)
    torch.testing.assert_close(
        l1_norm(model), vector(model).abs().sum() - model.tokens.weight.detach().abs().sum(), **EXACT
    )


@PROBLEMS
def test_task_negation_is_the_opposite_of_one_step(problem, model):
    expected = 3.0 * RATE * gradient(cross_entropy(problem, model, problem.forget), model)
    torch.testing.assert_close(change(TaskNegation(strength=3.0, **ONE_STEP), model, problem), expected, **EXACT)


def test_task_negation_is_exact_arithmetic():
    problem, model, method = classes(), net(), TaskNegation(strength=2.5, epochs=3, batch_size=4)
    tuned = copy.deepcopy(model)

    def forget_loss(batch) -> torch.Tensor:
        return loss(problem.objective.decisions(tuned, batch))

    method.descend_on_forget(tuned, job(problem, model, 3), forget_loss)
    start, there = vector(model), vector(tuned)
    assert (there - start).abs().max() > 0
    # The same operations in the same order: not even rounding differs.
    assert torch.equal(vector(method(model, problem, None, 3).model), start - 2.5 * (there - start))


def test_task_negation_of_strength_zero_changes_nothing():
    problem, model = classes(), net()
    assert torch.equal(vector(TaskNegation(strength=0.0)(model, problem, None, 0).model), vector(model))


# --- SalUn: what is masked stays where it was ------------------------------------------------------------------------


def mask_of(method: SalUn, model: nn.Module, problem) -> torch.Tensor:
    slope = summed_gradient(model, problem, problem.forget, Meter(), ALL_AT_ONCE)
    return torch.cat([entry.flatten() for entry in largest([s.abs() for s in slope], method.share)])


@PROBLEMS
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_salun_holds_masked_weights_through_momentum_and_decay(optimizer, problem, model):
    method = SalUn(share=0.3, optimizer=optimizer, weight_decay=0.1, learning_rate=0.01, epochs=3, batch_size=5)
    moves, found = mask_of(method, model, problem), change(method, model, problem)
    assert int(moves.sum()) == round(0.3 * len(moves))
    assert (found[~moves] == 0).all()  # to the bit
    assert (found[moves] != 0).double().mean() > 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_zeroing_gradients_would_not_hold_a_weight(optimizer):
    """The published mistake, as a control: the test above can see it."""
    weight = nn.Parameter(torch.ones(1))
    step = SalUn(optimizer=optimizer, weight_decay=0.1).steps(nn.ParameterList([weight]), Meter()).optimizer
    weight.grad = torch.zeros(1)
    step.step()
    assert weight.item() != 1.0


def test_salun_moves_the_others_by_the_sum_of_both_losses():
    problem, model = classes(), net()
    method = SalUn(share=0.4, weight=0.5, **PAIRED)
    batch = next(method.pairs(job(problem, model, 3))).forget
    wrong = problem.objective.relabel(batch, torch.Generator().manual_seed(derive(3, "labels")))
    value = cross_entropy(problem, model, problem.retain) + 0.5 * loss(problem.objective.decisions(model, wrong))
    expected = -RATE * gradient(value, model) * mask_of(method, model, problem)
    torch.testing.assert_close(change(method, model, problem), expected, **EXACT)


def test_the_mask_is_of_the_gradient_of_the_whole_forget_set():
    problem, model = classes(), net()
    whole = summed_gradient(model, problem, problem.forget, Meter(), ALL_AT_ONCE)
    parts = summed_gradient(model, problem, problem.forget, Meter(), 2)
    expected = len(problem.forget) * gradient(cross_entropy(problem, model, problem.forget), model)
    for slope in (whole, parts):
        torch.testing.assert_close(torch.cat([s.flatten() for s in slope]), expected, **EXACT)


def test_largest_counts_over_all_tensors_and_breaks_ties_by_order():
    masks = largest([torch.tensor([[3.0, 1.0], [1.0, 0.0]]), torch.tensor([2.0, 1.0])], 0.5)
    assert masks[0].tolist() == [[True, True], [False, False]]
    assert masks[1].tolist() == [True, False]


def test_a_rule_that_any_model_meets_is_refused():
    problem = classes()
    two = replace(problem, data=replace(problem.data, targets=problem.data.targets % 2, labels=("a", "b")))
    with pytest.raises(SpecError, match="chances: 2 times 1 / 2 is met by any model"):
        GradientAscent()(linear(), two, None, 0)
    assert GradientAscent(chances=1.0)(net(), two, None, 0).cost.gradients >= 0
