"""Complex weights are weights: every part gives what it gives on the same network of real weights, or refuses by name.

The oracle is that network: each complex weight is two real parameters, the rest is the same (`_complex.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _complex import INPUTS, Modulus, as_pairs, cases, complex_net, parts_of, problem_of
from torch import Tensor, nn
from torch.nn import functional as F

import expunge
from expunge.attacks.prune import prune
from expunge.attacks.quantise import rounded
from expunge.audits.in_context import InContext
from expunge.audits.path import interpolate
from expunge.base import registry
from expunge.base.errors import ExpungeError, SpecError
from expunge.blocks.tied_dropout import TiedLayer, drop_memory, memory_weights
from expunge.core import checkpoint
from expunge.core.case import Case
from expunge.core.data import Batch
from expunge.core.features import Features, FeatureSite
from expunge.core.forward import output_of
from expunge.core.modules import first_parameter, movable, state_digest
from expunge.core.refusals import refuse_model
from expunge.methods.l1_sparse import l1_norm
from expunge.methods.weight_distance_reg import distance
from expunge.numerics.factors import kronecker_rows
from expunge.numerics.gram import gram
from expunge.numerics.linops import bends, differentiable, gauss_newton, hessian
from expunge.numerics.precision import wide, zeros_for
from expunge.numerics.real import flat, split
from expunge.objectives.classification import Classification
from expunge.train.cscore import cscores
from expunge.train.monitors.feature_loss import FeatureLossMonitor, class_directions
from expunge.train.monitors.sharpness import SharpnessMonitor
from expunge.train.training import Training

CLOSE = {"rtol": 1e-6, "atol": 1e-8}
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("audit", "u_lira"): {"shadows": 4},
    ("audit", "in_context"): {"demonstrations": (1, 2), "layer": "squash"},
    ("diagnostic", "hardness"): {"steps": 100},
    ("diagnostic", "sharpness"): {"epochs": 30.0},
    ("method", "tar"): {"outer_steps": 3, "inner_steps": 2, "batch_size": 8, "forget_batch_size": 4},
    ("method", "gradient_ascent"): {"learning_rate": 1e-3},
}
REFUSED = {
    ("method", "symmetry"): "not a plain chain of layers",
    ("method", "rem"): "no hidden layer of the model can be widened",
    ("method", "delete_codes"): "needs the block CodebookLayer",
    ("method", "remove_modes"): "needs the block BilinearLayer",
    ("attack", "recalibrate"): "no batch norm",
    ("audit", "aligned_distance"): "not a plain chain of layers",
    ("diagnostic", "object_attribution"): "do not know which object",
    ("audit", "object_occlusion"): "do not know which object",
}
"""Parts for certain layers only; they say so of any model without these."""
ELSEWHERE = {
    ("method", "checkpoint"): "a file",
    ("method", "l1_sparse"): "its norm is the modulus, below",
    ("audit", "generated"): "for texts",
}
SELECTIVE = ("potion", "ssd", "lfssd", "assd", "balanced_subnet", "learned_mask", "localized_pruning")
"""Methods that may leave every weight of so small a net as it is."""
PARTS = [
    (kind, name)
    for kind in ("method", "attack", "audit", "diagnostic")
    for name in registry.names(kind)
    if (kind, name) not in ELSEWHERE
]


def part_of(kind: str, name: str) -> Any:
    """The part with quick settings. Steps of SGD: Adam's would be rounding errors where a gradient is zero."""
    kind_of = registry.load(kind, name)
    given = dict(SETTINGS.get((kind, name), {}))
    if "optimizer" in kind_of.__dataclass_fields__ and kind in ("method", "attack"):
        given |= {"optimizer": "sgd"} | ({"learning_rate": 0.02} if "learning_rate" not in given else {})
    return kind_of(**given)


def of_a_class(case: Case) -> Case:
    """The case with all examples of the first label to forget."""
    problem, targets = case.problem, case.problem.data.targets
    ids = torch.arange(len(targets))
    own = {"forget": ids[:40][targets[:40] == 0], "retain": ids[:40][targets[:40] > 0]}
    own |= {"test": ids[40:54][targets[40:54] > 0], "holdout": ids[54:][targets[54:] == 0]}
    return replace(case, problem=replace(problem, **own))


@pytest.fixture(scope="module")
def both() -> tuple[Case, Case]:
    return cases()


def outcome(kind: str, part: Any, case: Case, model: nn.Module) -> Any:
    """What a part gives, as plain numbers."""
    if kind == "method":
        done = part(model, case.problem, case.recipe, 3, original=case.original)
        return {"weights": parts_of(done.model), "gradients": torch.tensor(done.cost.gradients)}
    if kind == "attack":
        refuse_model(part, model, "attack")
        done = part(model, case, 3)
        return {"weights": parts_of(done.model), "curve": torch.from_numpy(done.curve.values)}
    if kind == "audit":
        refuse_model(part, model, "audit")
        if isinstance(part, InContext):
            case = of_a_class(case)
        return {f"{s.metric} {s.split} {i}": torch.tensor(s.values) for i, s in enumerate(part(model, case, 3))}
    return {name: torch.tensor([e.value, e.low, e.high]).double() for name, e in part(case, 3).items()}


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}-{name}" for kind, name in PARTS])
def test_a_part_does_what_it_does_on_pairs_of_real_weights(kind: str, name: str, both: tuple[Case, Case]) -> None:
    part = part_of(kind, name)
    # Another model than the original: its last complex layer is shifted.
    models = [copy.deepcopy(case.original) for case in both]
    with torch.no_grad():
        models[0].get_parameter("second.weight").add_(0.1 - 0.2j)
        models[1].get_parameter("second.weight").add_(torch.tensor([0.1, -0.2]).double())
    before = state_digest(models[0])
    if (kind, name) in REFUSED:
        for case, model in zip(both, models, strict=True):
            with pytest.raises(ExpungeError, match=REFUSED[kind, name]):
                outcome(kind, part, case, model)
        return
    complexes, pairs = (outcome(kind, part, case, model) for case, model in zip(both, models, strict=True))
    assert complexes.keys() == pairs.keys()
    for quantity, values in complexes.items():
        torch.testing.assert_close(
            values, pairs[quantity], **CLOSE, equal_nan=True, msg=lambda m, q=quantity: f"{q}: {m}"
        )
    assert state_digest(models[0]) == before
    if kind == "method" and name not in SELECTIVE:
        # Both parts move.
        moved = complexes["weights"] - parts_of(models[0])
        assert moved[::2].any() and moved[1::2].any()


# --- What the pairs cannot show --------------------------------------------------------------------------------------


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_the_l1_norm_is_the_sum_of_moduli() -> None:
    model = complex_net()
    weights = [p.detach() for p in model.parameters()]
    by_hand = sum(float(torch.hypot(w.real, w.imag).sum() if w.is_complex() else w.abs().sum()) for w in weights)
    value = l1_norm(model)
    assert float(value.detach()) == pytest.approx(by_hand)
    [gradient] = torch.autograd.grad(value, [model.get_parameter("first.weight")])
    weight = model.get_parameter("first.weight").detach()
    torch.testing.assert_close(gradient, weight / weight.abs())


def test_the_distance_of_the_issue() -> None:
    """One weight moves by 1 + 1j: the squared distance is 2, not 1."""
    first, second = tensor(2), tensor(2) + torch.tensor([1 + 1j, 0])
    assert float(distance([second], [first])) == pytest.approx((2 / 4 + 1e-8) ** 0.5)


def test_pruning_and_rounding_take_each_part_for_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False, dtype=torch.complex128))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1 + 0.9j, 0.8 - 0.2j]], dtype=torch.complex128))
    prune(model, 0.5)
    assert model[0].weight.tolist() == [[0.9j, 0.8]]
    values = torch.view_as_real(tensor(3, 4))
    grid = rounded(values, 3) / (values.abs().amax((1, 2), keepdim=True) / 3)  # a row has one step for both parts
    assert torch.allclose(grid, grid.round()) and (grid.round().abs().amax((1, 2)) == 3).all()


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.inputs), batch.targets)


def test_vectors_of_real_and_complex_tensors() -> None:
    """A complex tensor after an odd number of real ones, also where the vector is differentiated."""
    tensors = [tensor(3, dtype=torch.float64), tensor(2, 2), tensor(2).requires_grad_()]
    vector = flat(tensors)
    assert vector.tolist()[3:5] == [tensors[1][0, 0].real, tensors[1][0, 0].imag]
    for again, before in zip(split(vector[:].detach(), tensors), tensors, strict=True):
        assert torch.equal(again, before.detach())
    [gradient] = torch.autograd.grad(vector @ torch.arange(15.0).double(), [tensors[2]])
    assert gradient.tolist() == [11 + 12j, 13 + 14j]


@pytest.mark.parametrize("which", ["hessian", "gauss_newton"])
def test_curvature_products_are_those_of_pairs(which: str) -> None:
    torch.manual_seed(0)
    model = complex_net()
    batches = [problem_of().data.batch(torch.arange(start, start + 10)) for start in (0, 10)]

    def product(net: nn.Module, vector: Tensor) -> Tensor:
        parameters = differentiable(net)
        if which == "hessian":
            return hessian(mean_loss, net, parameters, batches)(vector)
        return gauss_newton(
            lambda m, batch: m(batch.inputs), lambda f, b: F.cross_entropy(f, b.targets), net, parameters, batches
        )(vector)

    vector = tensor(len(parts_of(model)), dtype=torch.float64)
    torch.testing.assert_close(product(model, vector), product(as_pairs(model), vector), **CLOSE)


def test_bends_are_those_of_pairs() -> None:
    torch.manual_seed(0)
    model, batch = complex_net(), problem_of().data.batch(torch.arange(10))
    vectors = tensor(3, len(parts_of(model)), dtype=torch.float64)
    found, pairs = (bends(mean_loss, net, differentiable(net), batch, vectors) for net in (model, as_pairs(model)))
    for ours, theirs in zip(found, pairs, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_inner_products_of_gradients_are_those_of_parts() -> None:
    """Also if two gradients agree with a rule for real layers: complex weights have no rule."""
    torch.manual_seed(0)
    model, batch = complex_net(), problem_of().data.batch(torch.arange(6))
    found = gram(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), model, differentiable(model), batch[:2])
    rows = []
    for index in range(6):
        model.zero_grad()
        mean_loss(model, batch._replace(inputs=batch.inputs[[index]], targets=batch.targets[[index]])).backward()
        grads = [p.grad for p in model.parameters()]
        rows.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in grads]))
    torch.testing.assert_close(found.matrix, torch.stack(rows) @ torch.stack(rows).T, **CLOSE)
    assert set(found.unsupported) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    with pytest.raises(ExpungeError, match="no rule"):
        kronecker_rows(model.get_submodule("first"), tensor(2, INPUTS), tensor(2, 6), "first")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_training_with_decay_and_clipping_is_that_of_pairs(optimizer: Any) -> None:
    torch.manual_seed(0)
    problem, model = problem_of(), complex_net()
    training = Training(epochs=3, batch_size=10, optimizer=optimizer, weight_decay=0.1, clip=0.2, learning_rate=0.01)
    pairs = as_pairs(model)
    for net in (model, pairs):
        training.fit(net, problem.data, problem.train, 0)
    torch.testing.assert_close(parts_of(model), parts_of(pairs), **CLOSE)


def test_c_scores_are_those_of_pairs() -> None:
    """Nets side by side."""
    ours, theirs = cases(cscores=False)
    scores = [cscores(case.recipe, case.problem.data, 3, 0) for case in (ours, theirs)]
    torch.testing.assert_close(scores[0], scores[1], equal_nan=True)


def test_monitors_measure_both_parts() -> None:
    torch.manual_seed(0)
    model, batch = complex_net(), problem_of().data.batch(torch.arange(20))
    sharp = [SharpnessMonitor(mean_loss, [batch]) for _ in "12"]
    for monitor, net in zip(sharp, (model, as_pairs(model)), strict=True):
        monitor(0, net)
    np.testing.assert_allclose(sharp[0].sharpness, sharp[1].sharpness, rtol=1e-6)
    directions = class_directions(batch.inputs, batch.targets)
    faded = FeatureLossMonitor(mean_loss, [batch], directions)
    faded(0, model)
    weight = model.get_parameter("first.weight").detach()
    _, sizes, basis = torch.linalg.svd(directions, full_matrices=False)
    inside = weight @ basis[sizes > 1e-10 * sizes[0]].T.to(weight)
    assert faded.alignments[0] == pytest.approx(float(inside.norm() / weight.norm()))
    second = torch.view_as_real(model.get_parameter("second.weight").detach())
    assert faded.norms[0] == pytest.approx(float(second.norm()))
    for wrong in (
        lambda: class_directions(tensor(4, 3), torch.arange(4)),
        lambda: FeatureLossMonitor(mean_loss, [batch], tensor(1, 3)),
    ):
        with pytest.raises(SpecError, match="complex"):
            wrong()


def test_features_are_the_parts() -> None:
    model, problem = complex_net(), problem_of()
    batch = problem.data.batch(torch.arange(7))
    hidden = model[:2](batch.inputs)
    _, [rows] = Features(problem, [FeatureSite("first")], "layers")(model, batch)
    torch.testing.assert_close(rows, torch.cat([hidden.real, hidden.imag], 1))
    other = torch.flip(hidden, [0])
    products = (hidden.conj() * other).sum(1).real
    torch.testing.assert_close((rows * torch.flip(rows, [0])).sum(1), products)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_first_parameter_shows_the_real_type(dtype: torch.dtype) -> None:
    model = complex_net(dtype)[:4]
    place = first_parameter(model)
    assert place.dtype == dtype.to_real()
    batch = problem_of().data.batch(torch.arange(3))
    assert output_of(model, batch).dtype == dtype
    waves = batch._replace(inputs=torch.complex(batch.inputs, batch.inputs))
    assert output_of(model[1:], waves).dtype == dtype
    assert (wide(place).dtype, zeros_for(model[1].weight).dtype) == (dtype.to_real(), dtype)


def test_complex_buffers_move_too() -> None:
    """The path between two models interpolates a complex buffer, and a midpoint averages it."""
    models = [nn.Sequential(nn.Linear(3, 3), Modulus()) for _ in "12"]
    for number, model in enumerate(models):
        model.register_buffer("phase", torch.full((2,), complex(number, -number)))
    assert "phase" in movable(models[0])
    middle = [model.phase.clone() for model in interpolate(*models, points=3)][1]
    assert middle.tolist() == [0.5 - 0.5j] * 2


def test_the_memory_of_tied_dropout_is_found_among_complex_weights() -> None:
    torch.manual_seed(0)
    net, problem = complex_net(), problem_of()
    model = nn.Sequential(net[0], net[1], TiedLayer(0.5, memory=0.4), *net[3:])
    found = memory_weights(model, problem.objective, problem.data.batch(torch.arange(4)))
    rows, columns = found["1.weight"], found["3.weight"]
    assert rows[3:].all() and not rows[:3].any() and columns[:, 3:].all() and not columns[:, :3].any()
    drop_memory(model, found)
    assert not model[1].weight[3:].abs().sum() and not model[3].weight[:, 3:].abs().sum()
    assert model[1].weight[:3].abs().all() and model[3].weight[:, :3].abs().all()


# --- Files -----------------------------------------------------------------------------------------------------------


def test_weights_are_written_and_read() -> None:
    torch.manual_seed(0)
    model, other = complex_net(torch.complex64), complex_net(torch.complex64)
    assert state_digest(model) != state_digest(other)
    checkpoint.restore(other, checkpoint.dump(model), "file")
    assert state_digest(model) == state_digest(other)


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "a wider type": (lambda: checkpoint.dump(complex_net()), "complex128, which safetensors files cannot hold"),
    "complex into real": (
        lambda: checkpoint.restore(nn.Linear(2, 2), checkpoint.dump(nn.Linear(2, 2, dtype=torch.complex64)), "file"),
        "is torch.complex64, the model's is torch.float32",
    ),
    "real into complex": (
        lambda: checkpoint.restore(nn.Linear(2, 2, dtype=torch.complex64), checkpoint.dump(nn.Linear(2, 2)), "file"),
        "is torch.float32, the model's is torch.complex64",
    ),
    "complex logits": (
        lambda: (
            Classification()
            .bound_to(problem_of().data)
            .decisions(complex_net()[:4], problem_of().data.batch(torch.arange(2)))
        ),
        "its outputs are torch.complex128",
    ),
    "wider complex layers": (
        lambda: registry.build("block", "widen", {}, where="block")(
            nn.Sequential(complex_net()[1], complex_net()[3]), "0"
        ),
        "its weights are complex",
    ),
}


@pytest.mark.parametrize(("call", "finding"), REFUSALS.values(), ids=REFUSALS)
def test_it_refuses_by_name(call: Callable[[], object], finding: str) -> None:
    with pytest.raises(SpecError, match=finding) as caught:
        call()
    assert caught.value.remedy or caught.value.allowed


def test_a_notebook_goes_all_the_way() -> None:
    """Weights in complex64, which are stored between the stages of an audit."""
    torch.manual_seed(0)
    problem = problem_of()
    sets = {"forget": problem.forget, "retain": problem.retain, "test": problem.test, "holdout": problem.holdout}
    pairs = {name: (problem.data.inputs[ids].float(), problem.data.targets[ids]) for name, ids in sets.items()}
    model = complex_net(torch.complex64)
    case = expunge.case(model, **pairs)
    done = expunge.unlearn(case, "weight_distortion", epochs=1, sigma=0.1)
    result = expunge.audit(done, case, attacks=["relearn", "quantise", "prune"], audits=["distance", "path"])
    lengths = [r["value"] for r in result.rows if (r["model"], r["metric"]) == ("weight_distortion", "l2_distance")]
    moved = float((parts_of(done.model) - parts_of(model)).double().norm())
    assert lengths and lengths == pytest.approx([moved] * len(lengths), rel=1e-5)
