"""Matching hidden units: what was only permuted is found back exactly, and nothing is ever further than before."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from test_symmetry import IMAGES, MODELS, PROBLEM, lively, outputs
from torch import Tensor, nn

import expunge
from expunge.audits.aligned_distance import AlignedDistance, aligned
from expunge.audits.distance import l2
from expunge.audits.path import Path
from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.methods.finetune import Finetune
from expunge.methods.symmetry import Symmetry
from expunge.models.mlp import MLP
from expunge.models.vit import ViT
from expunge.numerics.assignment import best_order, worth


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Assignment ------------------------------------------------------------------------------------------------------


def admissible(units: int, groups: int) -> list[Tensor]:
    """Every order that maps whole groups to whole groups, written out."""
    size = units // groups
    found = []
    for order in itertools.permutations(range(units)):
        blocks = [order[i : i + size] for i in range(0, units, size)]
        if all(len({unit // size for unit in block}) == 1 for block in blocks):
            found.append(torch.tensor(order))
    return found


@pytest.mark.parametrize(("units", "groups", "count"), [(5, 1, 120), (6, 2, 72), (6, 3, 48), (6, 6, 720)])
def test_the_best_order_is_the_best_of_all_admissible_ones(units: int, groups: int, count: int) -> None:
    orders = admissible(units, groups)
    assert len(orders) == count
    for seed in range(20):
        similarity = drawn(units, units, seed=seed)
        best = best_order(similarity, groups)
        assert any(torch.equal(best, order) for order in orders)
        assert worth(similarity, best) == pytest.approx(max(worth(similarity, order) for order in orders), rel=1e-12)


# --- Alignment -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_has_distance_zero(name: str) -> None:
    """To the last bit, running statistics included: an order moves numbers and computes none."""
    model = lively(MODELS[name])
    for seed in range(4):
        permuted = Symmetry()(model, PROBLEM, None, seed).model
        assert l2(permuted, model) > 1
        found = aligned(permuted, model)
        assert l2(found, model) == 0
        for name_, tensor in model.state_dict().items():
            assert torch.equal(found.state_dict()[name_], tensor), name_


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_and_shaken_copy_is_as_far_as_it_was_shaken(name: str) -> None:
    model = lively(MODELS[name])
    shaken = copy.deepcopy(model)
    with torch.no_grad():
        for index, parameter in enumerate(shaken.parameters()):
            parameter.add_(drawn(*parameter.shape, seed=index), alpha=1e-3)
    permuted = Symmetry()(shaken, PROBLEM, None, 0).model
    assert l2(aligned(permuted, model), model) == pytest.approx(l2(shaken, model), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_alignment_keeps_the_function_and_never_moves_away(name: str) -> None:
    for seed in range(1, 5):
        model, original = lively(MODELS[name], seed), lively(MODELS[name])
        before = copy.deepcopy(model)
        found = aligned(model, original)
        assert l2(model, before) == 0
        assert l2(found, original) < l2(model, original)
        torch.testing.assert_close(outputs(found), outputs(model), rtol=1e-10, atol=1e-10)
        # Nothing is left to improve.
        assert l2(aligned(found, original), original) == l2(found, original)


def test_many_narrow_layers_are_found_back() -> None:
    """Where the search from the order that is there gets stuck, for two of these twenty: matching input to output."""
    model = lively(lambda: MLP(widths=[8] * 8)(IMAGES))
    for seed in range(20):
        assert l2(aligned(Symmetry()(model, PROBLEM, None, seed).model, model), model) == 0


def test_a_first_layer_that_is_all_noise_does_not_mislead() -> None:
    """Matching by incoming weights alone goes astray there, for one of these thirty for good; what is there is kept."""
    for seed in range(1, 31):
        model = lively(lambda: MLP(widths=[12, 9, 7])(IMAGES), seed)
        moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for index, parameter in enumerate(moved.parameters()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise, alpha=0.5 if index < 2 else 0.05)
        assert l2(aligned(moved, model), model) <= l2(moved, model)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_one_hidden_layer_is_matched_as_well_as_any_order_could(groups: int) -> None:
    """The search has one step then, which is exact: the smallest distance over all admissible orders, tried out."""

    def net(seed: int) -> nn.Sequential:
        norm = nn.GroupNorm(groups, 6) if groups > 1 else nn.Identity()
        return lively(lambda: nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3)), seed)

    model, original = net(1), net(2)
    smallest = float("inf")
    for order in admissible(6, groups):
        tried = copy.deepcopy(model)
        with torch.no_grad():
            for tensor in (tried[0].weight, tried[0].bias, *tried[1].parameters()):
                tensor.copy_(tensor[order])
            tried[3].weight.copy_(tried[3].weight[:, order])
        smallest = min(smallest, l2(tried, original))
    assert l2(aligned(model, original), original) == pytest.approx(smallest, rel=1e-12)
    assert smallest < l2(model, original)


# --- The audit -------------------------------------------------------------------------------------------------------


def test_the_audit_sees_through_the_order_where_distance_and_path_do_not() -> None:
    knowing = Finetune(epochs=30, batch_size=8, learning_rate=1e-2)
    model = knowing(lively(MODELS["mlp"]), PROBLEM, None, 0).model
    permuted, case = Symmetry()(model, PROBLEM, None, 0).model, Case(0, PROBLEM, model)
    found = {scores.key: scores for scores in AlignedDistance(points=5)(permuted, case, 0)}
    assert found.pop(("aligned_l2", "weights")).reduced() == 0
    assert set(found) == {("aligned_barrier", "retain"), ("aligned_barrier", "forget")}
    for plain in Path(points=5)(permuted, case, 0):
        assert plain.reduced() > 0.01
        matched = found["aligned_barrier", plain.split]
        assert (matched.role, matched.ids.tolist()) == ("predictor", plain.ids.tolist())
        # (1 - t) w + t w is w up to a rounding.
        assert matched.reduced() < 1e-12
        # The ends are the same functions as before matching.
        assert matched.values[[0, -1]] == pytest.approx(plain.values[[0, -1]], rel=1e-10)


def test_other_shapes_and_other_structures_are_refused() -> None:
    wide, narrow = (lively(lambda width=width: MLP(widths=[width])(IMAGES)) for width in (8, 9))
    with pytest.raises(SpecError, match="different parameters"):
        AlignedDistance()(wide, Case(0, PROBLEM, narrow), 0)
    with pytest.raises(MissingError, match="not a plain chain"):
        AlignedDistance().check_model(ViT(width=8, depth=1, heads=2)(IMAGES))


def test_the_notebook_refuses_it_before_any_reference_is_trained() -> None:
    data = [(IMAGES.inputs[ids], IMAGES.targets[ids]) for ids in (PROBLEM.forget, PROBLEM.retain, PROBLEM.test)]

    def train(module: nn.Module, _: object) -> None:
        raise AssertionError("trained")

    recipe = expunge.recipe(lambda: ViT(width=8, depth=1, heads=2)(IMAGES), train)
    names = dict(zip(("forget", "retain", "test"), data, strict=True))
    case = expunge.case(ViT(width=8, depth=1, heads=2)(IMAGES), recipe=recipe, **names)
    done = expunge.unlearn(case, "finetune", epochs=1)
    with pytest.raises(MissingError, match=r"^audit 'aligned_distance': the model is not a plain chain"):
        expunge.audit(done, case, audits=["aligned_distance"])
