"""The curvature edit against its equations, a plain loop over sorted pairs, and closed forms of each rule."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _toy import EXACT, classes, cross_entropy, gpt, knowing, net, tokens, vector
from torch import Tensor, nn

from expunge.base.errors import ExpungeError, MissingError, RunError, SpecError
from expunge.core.modules import parameters_digest
from expunge.core.problem import Problem
from expunge.methods import curvature_edit
from expunge.methods._search import GRID, Option, allocated, smallest
from expunge.methods.curvature_edit import CurvatureEdit
from expunge.numerics.curvature_mask import components, kept, rotation
from expunge.numerics.eigenbasis import Eigenbasis, decomposed, eigenbases
from expunge.numerics.kronecker import KroneckerFactors, LayerFactors
from expunge.numerics.matrices import working_bytes
from expunge.train.curvature import kronecker_factors
from expunge.train.matrices import matrices


def symmetric(size: int, seed: int) -> Tensor:
    rows = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed)).double()
    return (rows * torch.logspace(0, -2, size).double()).T @ (rows * torch.logspace(0, -2, size).double())


def basis() -> Eigenbasis:
    """Of a layer with 4 outputs and 6 inputs."""
    return Eigenbasis(*decomposed(symmetric(4, 0), "0"), *decomposed(symmetric(6, 1), "0"))


def weight() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).double()


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def as_written(weight: Tensor, gradients: Tensor, inputs: Tensor, rho: float) -> Tensor:
    """Section 1 of the paper, one pair after the other."""
    low, left = torch.linalg.eigh(gradients)
    mu, right = torch.linalg.eigh(inputs)
    pairs = sorted(((float(a * b), i, j) for i, a in enumerate(low) for j, b in enumerate(mu)), reverse=True)
    total, mass, edited = float(low.sum() * mu.sum()), 0.0, torch.zeros_like(weight)
    for curvature, i, j in pairs:
        if mass >= rho * total:
            break
        mass += curvature
        edited += (left[:, i] @ weight @ right[:, j]) * torch.outer(left[:, i], right[:, j])
    return edited


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9, 0.99])
def test_kfac_keeps_the_pairs_with_most_of_the_curvature(rho: float) -> None:
    part = components("kfac", weight(), basis(), None, draws())
    edited = weight() - part.removed(kept(part.scores, rho))
    torch.testing.assert_close(edited, as_written(weight(), symmetric(4, 0), symmetric(6, 1), rho), **EXACT)


@pytest.mark.parametrize("rule", ["kfac", "ekfac", "saliency", "inputs_only", "svd", "random_rotation"])
def test_everything_kept_is_the_weight_itself(rule: Any) -> None:
    part = components(rule, weight(), basis(), basis().products + 1, draws())
    for shrinkage in ("hard", "soft"):
        assert part.removed(kept(part.scores, 1.0, shrinkage)).abs().max() == 0
    # All components together are the weight: nothing is lost outside of the bases.
    torch.testing.assert_close(part.removed(torch.zeros_like(part.scores)), weight(), **EXACT)


@pytest.mark.parametrize("rho", [0.2, 0.7, 0.95, 0.999])
def test_both_shrinkages_keep_the_named_share(rho: float) -> None:
    scores = basis().products
    hard, soft = kept(scores, rho), kept(scores, rho, "soft")
    mass = float((hard * scores).sum() / scores.sum())
    least = float(scores[hard == 1].min() / scores.sum())
    assert mass >= rho > mass - least
    assert float((soft * scores).sum() / scores.sum()) == pytest.approx(rho, abs=1e-9)
    order = scores.flatten().argsort()
    assert (soft.flatten()[order].diff() > 0).all() and 0 < soft.min() < soft.max() < 1


def test_ekfac_ranks_by_what_was_measured() -> None:
    measured = torch.rand(4, 6, generator=draws()).double()
    part = components("ekfac", weight(), basis(), measured, draws())
    best = torch.zeros(4, 6).double().flatten()
    best[measured.flatten().argmax()] = 1
    assert torch.equal(kept(part.scores, 1e-6), best.view(4, 6))


def test_saliency_is_twice_the_second_order_cost_of_a_component() -> None:
    """tr(G D A D^T) for the rank-one change D that takes the component out."""
    part = components("saliency", weight(), basis(), None, draws())
    for i in range(4):
        for j in range(6):
            only = torch.ones(4, 6).double()
            only[i, j] = 0
            change = part.removed(only)
            cost = torch.trace(symmetric(4, 0) @ change @ symmetric(6, 1) @ change.T)
            torch.testing.assert_close(part.scores[i, j], cost, **EXACT)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_inputs_only_projects_on_principal_input_directions(count: int) -> None:
    values, vectors = torch.linalg.eigh(symmetric(6, 1))
    top = vectors[:, -count:]
    part = components("inputs_only", weight(), basis(), None, draws())
    rho = float(values[-count:].sum() / values.sum()) - 1e-9
    edited = weight() - part.removed(kept(part.scores, rho))
    torch.testing.assert_close(edited, weight() @ top @ top.T, **EXACT)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_svd_is_the_best_approximation_of_lower_rank(count: int) -> None:
    left, values, right = torch.linalg.svd(weight(), full_matrices=False)
    rho = float(values[:count].square().sum() / values.square().sum()) - 1e-9
    part = components("svd", weight(), None, None, draws())
    edited = weight() - part.removed(kept(part.scores, rho))
    torch.testing.assert_close(edited, (left[:, :count] * values[:count]) @ right[:count], **EXACT)


def test_a_random_rotation_has_the_spectrum_of_kfac_in_other_directions() -> None:
    part = components("random_rotation", weight(), basis(), None, draws())
    assert part.left is not None
    for side in (part.left, part.right):
        torch.testing.assert_close(side.T @ side, torch.eye(len(side)).double(), **EXACT)
    assert torch.equal(part.scores, basis().products)
    assert (part.right.T @ basis().inputs).abs().max() < 0.99
    # Uniform: a QR decomposition without its signs would have a diagonal of one sign only.
    diagonal = torch.stack([rotation(2, draws().manual_seed(seed))[0, 0] for seed in range(400)])
    assert abs(float(diagonal.mean())) < 0.15 and float(diagonal.square().mean()) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("scores", "rho", "message"),
    [
        (torch.ones(2, 2), 0.0, "rho: found 0.0"),
        (torch.ones(2, 2), 1.5, "rho: found 1.5"),
        (torch.zeros(2, 2), 0.5, "all scores are 0"),
        (torch.full((2, 2), torch.nan), 0.5, "not finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores: Tensor, rho: float, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        kept(scores, rho)


def edited(method: CurvatureEdit, model: nn.Module, problem: Problem, seed: int = 0, **rest: Any) -> nn.Module:
    return method(model, problem, None, seed, **rest).model


@pytest.mark.parametrize("make", [(classes, net, ["0", "2"]), (tokens, gpt, ["blocks.0.up", "blocks.0.down"])])
def test_the_method_is_the_equation_on_factors_of_retained_examples(make: Any) -> None:
    problem, model, layers = make[0](), make[1](), make[2]
    method = CurvatureEdit(layers=layers, rho=0.8, labels="gold")
    done = method(model, problem, None, 0)
    ids = curvature_edit._for_factors(problem, method.examples)
    assert done.cost.gradients == len(ids) and set(ids.tolist()) < set(problem.retain.tolist())
    factors = kronecker_factors(model, problem, ids, matrices(model, layers), labels="gold").layers
    for path, layer in matrices(model, layers).items():
        expected = as_written(layer.weight.detach(), factors[path].gradients, factors[path].inputs, 0.8)
        torch.testing.assert_close(done.model.get_submodule(path).weight.detach(), expected, **EXACT)
    untouched = dict(model.named_parameters())
    for name, parameter in done.model.named_parameters():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(parameter, untouched[name])


@pytest.mark.parametrize("rule", ["kfac", "ekfac", "saliency", "inputs_only", "random_rotation"])
def test_the_forget_set_has_no_part_in_it(rule: Any) -> None:
    problem, model = classes(), net()
    targets, inputs = problem.data.targets.clone(), problem.data.inputs.clone()
    targets[problem.forget], inputs[problem.forget] = 0, 7.0
    other = replace(problem, data=replace(problem.data, inputs=inputs, targets=targets))
    results = [edited(CurvatureEdit(rule=rule, rho=0.7), model, p) for p in (problem, other)]
    assert torch.equal(*(vector(result) for result in results))
    assert not torch.equal(vector(results[0]), vector(model))


def test_factors_of_a_file_replace_the_measured_ones_and_protected_ones_add_to_them(tmp_path: Path) -> None:
    problem, model = classes(), net()
    layers = matrices(model, ["**"])
    general, special = (
        kronecker_factors(model, problem, ids, layers, labels="gold")
        for ids in (problem.retain[:9], problem.retain[9:])
    )
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("general", "special", "mixed")}
    general.save(paths["general"])
    special.save(paths["special"])
    general.merged(special, 2.0).save(paths["mixed"])
    first = CurvatureEdit(rho=0.7, factors=paths["general"])(model, problem, None, 0)
    assert first.cost.gradients == 0
    protected = CurvatureEdit(rho=0.7, factors=paths["general"], protect=paths["special"], protect_weight=2.0)
    mixed = edited(CurvatureEdit(rho=0.7, factors=paths["mixed"]), model, problem)
    assert torch.equal(vector(edited(protected, model, problem)), vector(mixed))
    assert not torch.equal(vector(first.model), vector(mixed))
    with pytest.raises(SpecError, match="belong to a model with digest"):
        edited(CurvatureEdit(factors=paths["general"]), net(seed=1), problem)


def test_ekfac_adds_the_curvature_of_protected_data_along_its_own_components(tmp_path: Path) -> None:
    problem, model = classes(), net()
    layers = matrices(model, ["0"])
    settings: dict[str, Any] = {"labels": "gold", "eigenvalues": "positions"}
    general = kronecker_factors(model, problem, problem.retain[:9], layers, **settings)
    special = kronecker_factors(model, problem, problem.retain[9:], layers, **settings)
    for name, factors in (("general", general), ("special", special)):
        factors.save(tmp_path / name)
    files: dict[str, Any] = {"factors": str(tmp_path / "general"), "protect": str(tmp_path / "special")}
    found = edited(CurvatureEdit(layers=["0"], rule="ekfac", rho=0.8, **files, protect_weight=3.0), model, problem)
    ((_, basis),) = eigenbases(general)
    scores = torch.empty(7, 5).double()
    for i in range(7):
        for j in range(5):
            u, v = basis.gradients[:, i], basis.inputs[:, j]
            other = (u @ special.layers["0"].gradients @ u) * (v @ special.layers["0"].inputs @ v)
            scores[i, j] = (general.eigenvalues["0"][i, j] + 3 * other) / 4
    part = components("ekfac", model[0].weight.detach(), basis, scores, draws())
    expected = model[0].weight.detach() - part.removed(kept(scores, 0.8))
    torch.testing.assert_close(found.get_submodule("0").weight.detach(), expected, **EXACT)
    alone = CurvatureEdit(layers=["0"], rule="ekfac", rho=0.8, factors=files["factors"])
    assert not torch.equal(vector(edited(alone, model, problem)), vector(found))


def test_a_protected_direction_is_kept() -> None:
    flat, sharp = torch.tensor([1e-6, 1.0]).double(), torch.tensor([1.0, 1e-6]).double()
    one = KroneckerFactors({"0": LayerFactors(torch.diag(sharp), torch.eye(2).double(), 1)})
    two = KroneckerFactors({"0": LayerFactors(torch.diag(flat), torch.eye(2).double(), 1)})

    def left_over(factors: KroneckerFactors) -> Tensor:
        ((_, found),) = eigenbases(factors)
        part = components("inputs_only", torch.ones(2, 2).double(), found, None, draws())
        return torch.ones(2, 2).double() - part.removed(kept(part.scores, 0.9))

    assert left_over(one)[:, 1].abs().max() == 0
    torch.testing.assert_close(left_over(one.merged(two, 1.0)), torch.ones(2, 2).double(), **EXACT)


@pytest.mark.parametrize("validation", ["retain", "holdout"])
@pytest.mark.parametrize("search", ["perplexity", "utility"])
def test_a_search_goes_to_the_limit_of_the_tolerance_and_not_beyond(search: Any, validation: Any) -> None:
    problem = classes()
    model = knowing(net(), replace(problem, forget=problem.retain, retain=problem.forget))
    ids = problem.holdout if validation == "holdout" else curvature_edit._for_validation(problem)

    def harm(changed: nn.Module) -> float:
        if search == "perplexity":
            return float((cross_entropy(problem, changed, ids) - cross_entropy(problem, model, ids)).detach().exp()) - 1
        right = [problem.objective.measure(m, problem.data.batch(ids))["accuracy"].mean() for m in (model, changed)]
        return float(right[0] - right[1])

    settings: dict[str, Any] = {"labels": "gold", "validation": validation}
    tolerance = 1.0 if search == "perplexity" else 0.2
    found = edited(CurvatureEdit(search=search, tolerance=tolerance, **settings), model, problem)
    assert harm(found) <= tolerance + 1e-6
    strengths = [0.999, 0.99, 0.95, 0.9, 0.7, 0.5]
    fixed = {rho: edited(CurvatureEdit(rho=rho, **settings), model, problem) for rho in strengths}
    moved = {rho: float((vector(m) - vector(model)).norm()) for rho, m in fixed.items()}
    # Gentler than the first of these that exceeds the tolerance, at least as strong as all before.
    outside = next((at for at, rho in enumerate(strengths) if harm(fixed[rho]) > tolerance), len(strengths))
    reached = float((vector(found) - vector(model)).norm())
    assert reached > 0 and all(reached >= moved[rho] - 1e-9 for rho in strengths[:outside])
    assert outside == len(strengths) or reached < moved[strengths[outside]]


def test_the_search_finds_the_border() -> None:
    for border in (0.9996, 0.92, 0.61):
        found = smallest(lambda rho, border=border: rho >= border)
        assert border <= found < border + 0.02
    assert smallest(lambda rho: True) == 0.5
    with pytest.raises(RunError, match="gentlest"):
        smallest(lambda rho: False)


def test_each_layer_gets_its_own_strength_within_the_tolerance() -> None:
    """Against the best of all combinations of strengths, tried one by one."""
    problem = classes()
    model = knowing(net(), replace(problem, forget=problem.retain, retain=problem.forget))
    settings: dict[str, Any] = {"search": "perplexity", "tolerance": 0.5, "labels": "gold"}
    found = edited(CurvatureEdit(per_layer=True, **settings), model, problem)
    one = edited(CurvatureEdit(**settings), model, problem)
    ids = curvature_edit._for_validation(problem)

    def rise(changed: nn.Module) -> float:
        return float((cross_entropy(problem, changed, ids) - cross_entropy(problem, model, ids)).detach().exp()) - 1

    def gain(changed: nn.Module) -> float:
        pairs = [[m.get_submodule(p).weight.detach() for m in (changed, model)] for p in ("0", "2")]
        return sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs)

    assert rise(found) <= 0.5 + 1e-6 and rise(one) <= 0.5 + 1e-6
    alone = {}
    for path in ("0", "2"):
        strengths = [edited(CurvatureEdit(layers=[path], rho=rho, labels="gold"), model, problem) for rho in GRID]
        alone[path] = [model.get_submodule(path).weight, *(m.get_submodule(path).weight for m in strengths)]
    best, mixed = 0.0, copy.deepcopy(model)
    for first in alone["0"]:
        for second in alone["2"]:
            with torch.no_grad():
                mixed.get_submodule("0").weight.copy_(first)
                mixed.get_submodule("2").weight.copy_(second)
            best = max(best, gain(mixed)) if rise(mixed) <= 0.5 else best
    assert 0.8 * best <= gain(found) <= best + 1e-6


def test_a_layer_that_costs_more_than_it_gives_stays() -> None:
    cheap = [Option(1.0, 0, 0), Option(0.9, 0.5, 0.01), Option(0.5, 0.9, 0.1)]
    dear = [Option(1.0, 0, 0), Option(0.9, 0.01, 0.09)]
    damages = {(r.rho, s.rho): r.damage + s.damage for r in cheap for s in dear}
    found = allocated({"a": cheap, "b": dear}, lambda rhos: damages[rhos["a"], rhos["b"]] <= 0.1)
    assert found == {"a": 0.5, "b": 1.0}
    assert allocated({"a": cheap, "b": dear}, lambda rhos: True) == {"a": 0.5, "b": 0.9}
    with pytest.raises(RunError, match="gentlest"):
        allocated({"a": cheap, "b": dear}, lambda rhos: all(rho == 1 for rho in rhos.values()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_layer": True}, "there is no search"),
        ({"rho": 0.0}, "rho"),
        ({"rho": 1.2}, "rho"),
        ({"rule": "pca"}, "rule"),
        ({"rule": "svd", "factors": "a"}, "uses no factors"),
        ({"rule": "svd", "protect": "a"}, "uses no factors"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        CurvatureEdit(**settings)


def test_problems_and_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match="no holdout"):
        edited(CurvatureEdit(search="utility", validation="holdout"), net(), classes(holdout=False))
    with pytest.raises(MissingError, match="LayerNorm"):
        edited(CurvatureEdit(layers=["**.norm1"]), gpt(), tokens())
    with pytest.raises(ExpungeError, match="meta"):
        CurvatureEdit().check_model(copy.deepcopy(net()).to("meta"))


def test_memory_is_predicted_and_refused_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = working_bytes(2048, 8192)
    # LAPACK's divide and conquer needs the matrix, its vectors and twice that as workspace.
    assert 4 * 8 * 8192**2 < needed < 4 * 2**30
    monkeypatch.setattr("expunge.train.matrices.memory", lambda: 2**31)
    large = nn.Sequential(nn.Linear(8192, 2048))
    with pytest.raises(SpecError, match=r"take 3\.\d GiB of memory.*2\.0 GiB"):
        CurvatureEdit().check_model(large)
    CurvatureEdit().check_model(net())


def test_rules_share_the_stage_of_their_factors() -> None:
    same = [CurvatureEdit(rule=rule, rho=rho).measuring() for rule, rho in (("kfac", 0.9), ("saliency", 0.5))]
    assert same[0] == same[1]
    for other in ({"rule": "ekfac"}, {"labels": "gold"}, {"layers": ["0"]}, {"examples": 5}, {"counted": "all"}):
        assert CurvatureEdit(**other).measuring() != same[0]


def test_an_edited_model_is_that_of_its_own_weights() -> None:
    """After another method the factors belong to that one's model."""
    problem, model = classes(), net()
    statistics = CurvatureEdit().measure(model, _job(problem, model))
    with pytest.raises(SpecError, match="digest"):
        CurvatureEdit()(net(seed=1), problem, None, 0, None, statistics, model)
    assert parameters_digest(net(seed=1)) != parameters_digest(model)


def _job(problem: Problem, model: nn.Module) -> Any:
    from _toy import job

    return job(problem, model)
