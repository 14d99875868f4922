"""Kronecker factors against a dense computation, one example and one position at a time, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _toy import EXACT, gpt, linear, net, tokens
from _toy import classes as classes_problem
from safetensors import safe_open
from test_factors import MATRICES, made, seen
from torch import Tensor, nn

from expunge.base.errors import ExpungeError, MissingError, RunError, SpecError
from expunge.core.case import Meter
from expunge.core.data import IGNORE
from expunge.core.modules import parameters_digest
from expunge.numerics.eigenbasis import curvature_in, eigenbases, ekfac_eigenvalues
from expunge.numerics.kronecker import KroneckerFactors, LayerFactors, collect, combined, factors_from, load_factors
from expunge.numerics.matrices import set_weight_matrix, weight_matrix
from expunge.train.curvature import kronecker_factors
from expunge.train.matrices import matrices


def losses(model: nn.Module, inputs: Tensor) -> Tensor:
    values = model(inputs).flatten(1)
    return (values * torch.linspace(-1, 1, values.shape[1]).double()).sin().sum(1)


def dense(layer: nn.Module, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each example, what the weight multiplies `[t, d_in]` and the gradients at the output `[t, d_out]`."""
    for example in inputs:
        output = layer(example[None]).detach().requires_grad_()
        values = output.flatten(1)
        total = (values * torch.linspace(-1, 1, values.shape[1]).double()).sin().sum()
        (back,) = torch.autograd.grad(total, output)
        channels_first = isinstance(layer, nn.Conv1d | nn.Conv2d)
        back = back[0].flatten(1).T if channels_first else back[0].reshape(-1, back.shape[-1])
        yield seen(layer, example), back


def second_moment(rows: list[Tensor]) -> Tensor:
    return torch.stack([torch.outer(row, row) for row in rows]).mean(0)


def model_of(name: str) -> tuple[nn.Module, Tensor]:
    layer, inputs = made(name)
    return nn.Sequential(layer), inputs


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", MATRICES)
def test_factors_are_second_moments_over_cases(name: str, sharing: Any) -> None:
    model, inputs = model_of(name)
    pairs = list(dense(model[0], inputs))
    if sharing == "expand":
        given, back = ([row for pair in pairs for row in pair[side]] for side in (0, 1))
    else:
        given, back = [a.mean(0) for a, _ in pairs], [g.sum(0) for _, g in pairs]
    for size in (1, 4, len(inputs)):
        factors = collect(model, losses, inputs.split(size), {"0": model[0]}, sharing=sharing).layers["0"]
        torch.testing.assert_close(factors.inputs, second_moment(given), **EXACT)
        torch.testing.assert_close(factors.gradients, second_moment(back), **EXACT)
        assert factors.cases == len(given)


@pytest.mark.parametrize("of", ["positions", "examples"])
@pytest.mark.parametrize("name", MATRICES)
def test_eigenvalues_of_ekfac_are_those_of_the_definition(name: str, of: Any) -> None:
    model, inputs = model_of(name)
    layers = {"0": model[0]}
    factors = collect(model, losses, inputs.split(4), layers)
    ((_, basis),) = eigenbases(factors)
    found = ekfac_eigenvalues(model, losses, inputs.split(4), layers, {"0": basis}, of=of)["0"]
    expected = []
    for given, back in dense(model[0], inputs):
        each = [torch.outer(g, a) for g, a in zip(back, given, strict=True)]
        gradients = each if of == "positions" else [torch.stack(each).sum(0)]
        expected += [(basis.gradients.T @ gradient @ basis.inputs).square() for gradient in gradients]
    torch.testing.assert_close(found, torch.stack(expected).mean(0), **EXACT)


@pytest.mark.parametrize("name", ["linear on a sequence", "transposed linear on a sequence", "conv2d", "conv1d"])
def test_only_positions_that_count_are_in_the_factors(name: str) -> None:
    model, inputs = model_of(name)
    pairs = list(dense(model[0], inputs))
    count = len(pairs[0][0])
    mask = torch.rand(len(inputs), count, generator=torch.Generator().manual_seed(1)) < 0.5
    chosen = [(a[mask[n]], g[mask[n]]) for n, (a, g) in enumerate(pairs)]

    def positions(path: str, batch: Tensor, total: int) -> Tensor:
        assert (path, total) == ("0", count)
        at = next(i for i in range(len(inputs)) if torch.equal(inputs[i], batch[0]))
        return mask[at : at + len(batch)]

    factors = collect(model, losses, inputs.split(2), {"0": model[0]}, positions=positions).layers["0"]
    torch.testing.assert_close(factors.inputs, second_moment([r for a, _ in chosen for r in a]), **EXACT)
    torch.testing.assert_close(factors.gradients, second_moment([r for _, g in chosen for r in g]), **EXACT)
    assert factors.cases == int(mask.sum())


class Gated(nn.Module):
    """Gate and up projections of the same tensor, of equal tensors, or of different ones."""

    def __init__(self, apart: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.apart, self.calls = nn.Linear(4, 5), nn.Linear(4, 5), apart, 0
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.gate(inputs).sigmoid() * self.up(self.apart(inputs, self.calls))


@pytest.mark.parametrize(
    ("apart", "shared"),
    [
        (lambda x, call: x, True),
        (lambda x, call: x.flip(1), False),
        (lambda x, call: x.clone(), False),
        # The same in the first batches only.
        (lambda x, call: x if call < 3 else 2 * x, False),
    ],
    ids=["one tensor", "another order", "equal numbers", "parted later"],
)
def test_layers_share_an_input_factor_only_if_their_inputs_are_one_tensor(apart: Any, shared: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Gated(apart), torch.randn(8, 4).double()
    layers = {"gate": model.gate, "up": model.up}
    factors = collect(model, losses, inputs.split(2), layers).layers
    assert (factors["gate"].inputs is factors["up"].inputs) == shared
    given = torch.cat([apart(part, call) for call, part in enumerate(inputs.split(2), 1)])
    torch.testing.assert_close(factors["gate"].inputs, inputs.T @ inputs / 8, **EXACT)
    torch.testing.assert_close(factors["up"].inputs, given.T @ given / 8, **EXACT)


def test_gold_labels_give_the_empirical_and_sampled_ones_the_true_second_moment() -> None:
    problem, model = classes_problem(), linear()
    ids = problem.retain
    inputs, targets = problem.data.inputs[ids], problem.data.targets[ids]
    chances = model(inputs).softmax(1).detach()
    wrong = chances - nn.functional.one_hot(targets, 3)
    gold = kronecker_factors(model, problem, ids, {"0": model[0]}, labels="gold", batch_size=5)
    torch.testing.assert_close(gold.layers["0"].gradients, wrong.T @ wrong / len(ids), **EXACT)
    draws = [kronecker_factors(model, problem, ids, {"0": model[0]}, seed=seed) for seed in range(200)]
    found = torch.stack([draw.layers["0"].gradients for draw in draws])
    truth = (torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]).mean(0)
    error = found.std(0) / 200**0.5
    assert ((found.mean(0) - truth).abs() < 4 * error).all()
    # The empirical moment is another one, so this would notice gold labels.
    assert ((gold.layers["0"].gradients - truth).abs() > 4 * error).any()


@pytest.mark.parametrize("counted", ["decided", "all", "first"])
def test_positions_of_a_text_are_counted_as_named(counted: Any) -> None:
    problem, model = tokens(), gpt().eval()
    layer, ids = model.blocks[0].up, problem.retain
    caught = []
    handle = layer.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0].detach()))
    model(problem.data.inputs[ids])
    handle.remove()
    mask = torch.ones(len(ids), 6, dtype=torch.bool)
    if counted == "decided":
        mask = problem.data.targets[ids] != IGNORE
    elif counted == "first":
        mask[:, 1:] = False
    rows = caught[0][mask]
    meter = Meter()
    found = kronecker_factors(model, problem, ids, {"up": layer}, counted=counted, batch_size=4, meter=meter)
    torch.testing.assert_close(found.layers["up"].inputs, rows.T @ rows / len(rows), **EXACT)
    assert meter.gradients == len(ids)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_text_shorter_than_the_context_counts_as_what_it_is(length: int) -> None:
    """Its padding has no part in the factors, whatever stands there."""
    problem, model = tokens(), gpt()
    layers = matrices(model, ["blocks.0.up"])
    short = problem.data.inputs.clone(), problem.data.targets.clone()
    # A causal model: nothing before the padding depends on it. The first position is a prompt.
    short[0][:, length + 1 :] = 3
    short[1][:, length + 1 :] = IGNORE
    padded = replace(problem, data=replace(problem.data, inputs=short[0], targets=short[1]))
    cut = replace(
        problem, data=replace(problem.data, inputs=short[0][:, : length + 1], targets=short[1][:, : length + 1])
    )
    found = [kronecker_factors(model, p, p.retain, layers, labels="gold").layers["blocks.0.up"] for p in (padded, cut)]
    assert found[0].cases == found[1].cases == length * len(problem.retain)
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_factors_come_back_from_a_file_with_what_made_them(tmp_path: Path) -> None:
    problem, model = classes_problem(), net()
    layers = matrices(model, ["**"])
    made = kronecker_factors(model, problem, problem.retain, layers, eigenvalues="positions", seed=3)
    made.save(tmp_path / "factors.safetensors")
    again = load_factors(tmp_path / "factors.safetensors")
    assert again.about == made.about and again.about["model"] == parameters_digest(model)
    assert again.about["labels"] == "sampled"
    with safe_open(tmp_path / "factors.safetensors", "pt") as file:
        assert file.metadata() == made.about
    for path in layers:
        assert again.layers[path].cases == made.layers[path].cases
        for ours, theirs in zip(again.layers[path][:2], made.layers[path][:2], strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(again.eigenvalues[path], made.eigenvalues[path])


def test_a_shared_factor_is_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Gated(lambda x, _: x)
    factors = collect(model, losses, [torch.randn(8, 4).double()], {"gate": model.gate, "up": model.up})
    assert [name for name in factors.tensors() if name.startswith("inputs/")] == ["inputs/gate"]
    again = factors_from(factors.tensors())
    assert again.layers["gate"].inputs is again.layers["up"].inputs
    mixed = factors.merged(factors, 0.5)
    assert mixed.layers["gate"].inputs is mixed.layers["up"].inputs


def test_a_mixture_is_that_of_the_cases() -> None:
    problem, model = classes_problem(), linear()
    layers = {"0": model[0]}
    one, two = (kronecker_factors(model, problem, ids, layers, labels="gold") for ids in problem.retain.split(9))
    both = kronecker_factors(model, problem, problem.retain, layers, labels="gold")
    mixed = one.merged(two, 1.0).layers["0"]
    torch.testing.assert_close(mixed.inputs, both.layers["0"].inputs, **EXACT)
    torch.testing.assert_close(mixed.gradients, both.layers["0"].gradients, **EXACT)
    third = one.merged(two, 0.5).layers["0"].inputs
    torch.testing.assert_close(third, (one.layers["0"].inputs + 0.5 * two.layers["0"].inputs) / 1.5, **EXACT)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("make", [(classes_problem, net, ["0", "2"]), (tokens, gpt, ["blocks.0.up", "blocks.0.down"])])
def test_parts_of_several_processes_make_the_whole(make: Any, count: int, tmp_path: Path) -> None:
    problem, model = make[0](), make[1]()
    layers, ids = matrices(model, make[2]), torch.cat([problem.retain, problem.forget])[:13]
    parts = []
    # Parts of different sizes: a mean of means would differ.
    for place, own in enumerate(ids.tensor_split([3, 5][: count - 1])):
        path = tmp_path / f"{place}.safetensors"
        kronecker_factors(model, problem, own, layers, labels="gold", seed=place).save(path)
        parts.append(load_factors(path))
    whole, found = kronecker_factors(model, problem, ids, layers, labels="gold"), combined(parts)
    assert found.about["examples"] == str(len(ids)) == whole.about["examples"]
    for path in layers:
        assert found.layers[path].cases == whole.layers[path].cases
        for ours, theirs in zip(found.layers[path][:2], whole.layers[path][:2], strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)
    found.require(layers, parameters_digest(model), "combined")


def test_parts_that_share_an_input_share_it_together() -> None:
    torch.manual_seed(0)
    model = Gated(lambda x, _: x)
    layers = {"gate": model.gate, "up": model.up}
    parts = [collect(model, losses, [torch.randn(8, 4).double()], layers) for _ in range(3)]
    found = combined(parts)
    assert found.layers["gate"].inputs is found.layers["up"].inputs
    mean = torch.stack([part.layers["up"].inputs for part in parts]).mean(0)
    torch.testing.assert_close(found.layers["up"].inputs, mean, **EXACT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: KroneckerFactors(f.layers, {**f.about, "model": "0" * 64}), "model"),
        (lambda f: KroneckerFactors(f.layers, {**f.about, "labels": "sampled"}), "labels 'gold'.*'sampled'"),
        (lambda f: KroneckerFactors(f.layers, {**f.about, "sharing": "reduce"}), "sharing"),
        (lambda f: KroneckerFactors({"1": f.layers["0"]}, f.about), "other factors of it"),
        (lambda f: changed(f, inputs=torch.eye(4)), "other factors of it"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: Any, message: str) -> None:
    problem, model = classes_problem(), linear()
    factors = kronecker_factors(model, problem, problem.retain, {"0": model[0]}, labels="gold")
    with pytest.raises(SpecError, match=message):
        combined([factors, change(factors)])
    with pytest.raises(SpecError, match="there are none"):
        combined([])


def test_the_curvature_of_other_factors_is_that_along_each_component() -> None:
    problem, model = classes_problem(), linear()
    one, two = (
        kronecker_factors(model, problem, ids, {"0": model[0]}, labels="gold") for ids in problem.retain.split(9)
    )
    ((_, basis),) = eigenbases(one)
    torch.testing.assert_close(curvature_in(basis, one.layers["0"]), basis.products, **EXACT)
    found, other = curvature_in(basis, two.layers["0"]), two.layers["0"]
    for i, j in ((0, 0), (2, 1), (1, 4)):
        u, v = basis.gradients[:, i], basis.inputs[:, j]
        torch.testing.assert_close(found[i, j], (u @ other.gradients @ u) * (v @ other.inputs @ v), **EXACT)


def changed(factors: KroneckerFactors, **fields: Tensor) -> KroneckerFactors:
    return KroneckerFactors({"0": factors.layers["0"]._replace(**fields)}, factors.about)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: KroneckerFactors(f.layers, {"model": "0" * 64}), "another|belong to a model"),
        (lambda f: KroneckerFactors({"1": f.layers["0"]}, f.about), "unknown layer '0'"),
        (lambda f: changed(f, inputs=torch.eye(4)), r"inputs has shape \[4, 4\]"),
        (lambda f: changed(f, gradients=torch.eye(5)), r"gradients has shape \[5, 5\]"),
        (lambda f: changed(f, inputs=torch.full((5, 5), torch.nan)), "inputs holds NaN"),
        (lambda f: changed(f, gradients=torch.full((3, 3), torch.inf)), "gradients holds NaN or infinity"),
    ],
    ids=["another model", "another layer", "inputs' size", "gradients' size", "NaN", "infinity"],
)
def test_factors_of_something_else_are_refused(make: Any, message: str) -> None:
    problem, model = classes_problem(), linear()
    factors = kronecker_factors(model, problem, problem.retain, {"0": model[0]})
    factors.require({"0": model[0]}, parameters_digest(model), "factors")
    with pytest.raises(SpecError, match=message):
        make(factors).require({"0": model[0]}, parameters_digest(model), "factors")


@pytest.mark.parametrize("content", [b"no safetensors", None], ids=["garbage", "other tensors"])
def test_a_file_without_factors_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "factors.safetensors"
    if content is None:
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(SpecError, match="factors"):
        load_factors(path)


class Idle(nn.Module):
    """The second layer never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.one(inputs)


def test_what_cannot_be_measured_is_named() -> None:
    model, inputs = Idle(), torch.randn(4, 3)
    layers = {"one": model.one, "two": model.two}
    with pytest.raises(SpecError, match="two: it did not run"):
        collect(model, losses, [inputs], layers)
    with pytest.raises(SpecError, match="one: it did not run"):
        collect(model, losses, [], layers)
    none = torch.zeros(4, 1, dtype=torch.bool)
    with pytest.raises(SpecError, match="one: none of its positions counts"):
        collect(model, losses, [inputs], {"one": model.one}, positions=lambda *_: none)
    with pytest.raises(SpecError, match=r"mask of positions has shape \[4, 1\].*\[4, 2\]"):
        twice = nn.Sequential(nn.Linear(3, 2))
        collect(twice, losses, [torch.randn(4, 2, 3)], {"0": twice[0]}, positions=lambda *_: none)
    with pytest.raises(RunError, match="not finite"):
        collect(model, losses, [inputs * torch.nan], {"one": model.one})


@pytest.mark.parametrize("name", MATRICES)
def test_a_weight_is_the_matrix_that_multiplies_inputs(name: str) -> None:
    layer, inputs = made(name)
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        outputs = layer(inputs[:1])[0]
    channels_first = isinstance(layer, nn.Conv1d | nn.Conv2d)
    outputs = outputs.flatten(1).T if channels_first else outputs.reshape(-1, outputs.shape[-1])
    matrix = weight_matrix(layer)
    torch.testing.assert_close(seen(layer, inputs[0]) @ matrix.T, outputs, **EXACT)
    before = layer.weight.detach().clone()
    set_weight_matrix(layer, 2 * matrix)
    torch.testing.assert_close(layer.weight.detach(), 2 * before, **EXACT)


def block() -> nn.Module:
    """Layers that can be edited (`blocks.*.up`) among others that cannot."""
    inner = nn.ModuleDict({"up": nn.Linear(4, 6), "norm": nn.LayerNorm(4), "frozen": nn.Linear(4, 4)})
    inner["frozen"].requires_grad_(False)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "blocks": nn.ModuleList([inner]), "lstm": nn.LSTM(4, 4)})
    model["grouped"], model["head"] = nn.Conv1d(4, 4, 1, groups=2), nn.Linear(4, 5, bias=False)
    model["head"].weight = model["embed"].weight
    return model


def test_layers_are_chosen_by_pattern_and_what_cannot_be_edited_is_left_out() -> None:
    for patterns in (["**"], ["blocks.*.up"], ["blocks.**"], ["**.up", "blocks.0.norm"]):
        assert list(matrices(block(), patterns)) == ["blocks.0.up"]


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("blocks.*.norm", MissingError, r"'blocks.0.norm' \(LayerNorm\) has no weight"),
        ("lstm", MissingError, r"'lstm' \(LSTM\) has no weight"),
        ("grouped", MissingError, r"'grouped' \(Conv1d\) has no weight"),
        ("head", MissingError, r"'head' \(Linear\) shares its weight"),
        ("blocks.*.frozen", MissingError, r"'blocks.0.frozen' \(Linear\) is frozen"),
        ("blocks.*.down", SpecError, r"unknown layer 'blocks\.\*\.down'.*blocks.0.up"),
    ],
)
def test_a_model_without_layers_to_edit_is_refused(pattern: str, error: type[ExpungeError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        matrices(block(), [pattern])
    assert raised.value.remedy or raised.value.allowed


def test_a_model_without_numbers_is_refused() -> None:
    with pytest.raises(SpecError, match="'meta'"):
        matrices(nn.Linear(3, 2, device="meta"), ["**"])


def test_the_factors_of_half_precision_are_summed_in_single_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).bfloat16()
    factors: LayerFactors = collect(
        model, lambda m, x: m(x).float().square().sum(1), [torch.ones(64, 3).bfloat16()] * 20, {"0": model[0]}
    ).layers["0"]
    assert factors.inputs.dtype == factors.gradients.dtype == torch.float32
    # In bfloat16 the sum would stop at 256.
    torch.testing.assert_close(factors.inputs, torch.ones(3, 3))
