"""Attacks that change the weights once: quantisation, pruning, and new statistics for batch norm."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from expunge.attacks.prune import Prune, prune
from expunge.attacks.quantise import Quantise, quantise, rounded
from expunge.attacks.recalibrate import Recalibrate
from expunge.base.errors import MissingError, SpecError
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.train.loop import batches


def problem(n: int = 60) -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 4, generator=generator)
    groups = torch.arange(n)
    groups[20:25] = torch.arange(5)  # retained copies of the first forget examples
    data = Data(inputs, torch.arange(n) % 3, torch.arange(50), torch.arange(50, n), ("a", "b", "c"), groups=groups)
    return Problem(data, torch.arange(20), torch.arange(20, 50), data.test)


def net(*, norm: bool = False) -> nn.Sequential:
    layers = [nn.Linear(4, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)]
    return nn.Sequential(*layers).eval()


def case(model: nn.Module) -> Case:
    return Case(0, problem(), model)


def test_quantisation_against_values_by_hand() -> None:
    # Four bits: steps of max / 7. Of 0.7 that is 0.1, and 0.25 lies half-way between 0.2 and 0.3.
    weight = torch.tensor([0.7, -0.34, 0.06, 0.04, -0.7, 0.0])
    assert rounded(weight, 4) == pytest.approx(torch.tensor([0.7, -0.3, 0.1, 0.0, -0.7, 0.0]))
    # Two bits leave -max, 0 and max.
    assert rounded(torch.tensor([[1.0, 0.6], [-0.4, -1.0]]), 2).tolist() == [[1.0, 1.0], [0.0, -1.0]]
    assert rounded(torch.zeros(3, 2), 8).tolist() == torch.zeros(3, 2).tolist()


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantising_again_changes_nothing_and_errors_stay_below_half_a_step(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    # Many, since a grid that is computed in single precision moves by its last bit for some largest weights only.
    for weight in torch.randn(50, 64, 33, generator=generator):
        once = rounded(weight.flatten(), bits)
        assert torch.equal(rounded(once, bits), once)
        grouped = rounded(weight, bits, 7)
        assert torch.equal(rounded(grouped, bits, 7), grouped)
    step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
    # Half a step, and a part in a million for rounding to single precision.
    assert float((once - weight.flatten()).abs().max()) <= step / 2 * (1 + 1e-6)
    assert len(once.unique()) <= 2**bits - 1


def test_a_group_of_a_row_has_its_own_step() -> None:
    """Each group alone, as one row, gives the same; a convolution's row is one output channel."""
    weight = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    weight[0, 0, 0] = 100  # an outlier coarsens its own group only
    for group, ends in ((4, (4, 8, 10)), (0, (10,)), (64, (10,))):
        for row, once in zip(weight.flatten(1), rounded(weight, 4, group).flatten(1), strict=True):
            start = 0
            for end in ends:
                assert torch.equal(once[start:end], rounded(row[start:end], 4))
                start = end


class Tied(nn.Module):
    """A language model whose output layer is its embedding, with a layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.middle, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.tokens.weight


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize(
    ("model", "changed"),
    [
        (Tied, ["middle.weight"]),
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), ["1.weight"]),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), ["0.weight"]),
        (gpt2, [f"transformer.h.0.{at}.weight" for at in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]),
    ],
)
def test_embeddings_and_what_is_tied_to_them_are_not_rounded(
    model: Callable[[], nn.Module], changed: list[str]
) -> None:
    given = model()
    before = {name: p.detach().clone() for name, p in given.named_parameters()}
    quantise(given, 4, 3)
    assert [name for name, p in given.named_parameters() if not torch.equal(before[name], p)] == changed


def test_a_row_of_a_transposed_layer_is_an_output() -> None:
    given = gpt2()
    layer = given.get_submodule("transformer.h.0.mlp.c_fc")
    weight = layer.weight.detach().clone()  # [inputs, outputs]
    quantise(given, 4)
    assert all(torch.equal(layer.weight[:, i], rounded(weight[:, i], 4)) for i in range(weight.shape[1]))


def test_quantisation_leaves_biases_and_norms_and_more_bits_move_less() -> None:
    model = net(norm=True)
    moved = {}
    for bits in (4, 8):
        found = dict(Quantise(bits=bits)(model, case(model), 0).model.named_parameters())
        before = dict(model.named_parameters())
        assert [n for n in before if not torch.equal(before[n], found[n])] == ["0.weight", "4.weight"]
        moved[bits] = sum(float((before[n] - found[n]).square().sum().detach()) for n in before)
    assert moved[8] < moved[4] / 100  # the step is 18 times smaller, its square more than 300 times
    with pytest.raises(SpecError, match="bits"):
        Quantise(bits=1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_pruning_counts_over_all_layers_together(share: float) -> None:
    model = net(norm=True)
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    prune(model, share)
    weights = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if p.ndim > 1])
    before = torch.cat([kept[n].flatten() for n, p in model.named_parameters() if p.ndim > 1])
    assert int((weights == 0).sum()) == round(share * len(weights))
    left = weights != 0
    assert torch.equal(weights[left], before[left])
    if 0 < share < 1:
        assert before[left].abs().min() >= before[~left].abs().max()
    assert all(torch.equal(kept[n], p) for n, p in model.named_parameters() if p.ndim < 2)


def test_pruning_equal_weights_still_gives_the_exact_number() -> None:
    layer = nn.Linear(10, 10)
    nn.init.ones_(layer.weight)
    prune(layer, 0.37)
    assert int((layer.weight == 0).sum()) == 37


def test_recalibration_equals_a_pass_by_hand() -> None:
    model, attack = net(norm=True), Recalibrate(batch_size=7)
    model[1].momentum = 0.3
    done, p = attack(model, case(model), 5), problem()
    # By hand: the plain average over batches of mean and unbiased variance of what the norm is given, and no copies.
    related = torch.isin(p.data.group_of(p.retain), p.data.group_of(p.unexposed))
    assert 0 < int(related.sum()) <= 5
    generator = torch.Generator().manual_seed(derive(5, "batches"))
    with torch.no_grad():
        given = [model[0](b.inputs) for b in batches(p.data, p.retain[~related], 7, 1, generator)]
    means, variances = (torch.stack([getattr(x, name)(0) for x in given]).mean(0) for name in ("mean", "var"))
    # Single precision, sums of a few numbers.
    assert torch.allclose(done.model[1].running_mean, means, rtol=1e-5, atol=1e-6)
    assert torch.allclose(done.model[1].running_var, variances, rtol=1e-5, atol=1e-6)
    assert done.model[1].momentum == 0.3 and not any(m.training for m in done.model.modules())


def test_recalibration_changes_no_weight_and_needs_batch_norm() -> None:
    model = net(norm=True)
    done = Recalibrate()(model, case(model), 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), done.model.parameters(), strict=True))
    assert not torch.equal(model[1].running_mean, done.model[1].running_mean)
    bare = net()
    with pytest.raises(MissingError, match="no batch norm with running statistics"):
        Recalibrate()(bare, case(bare), 0)


@pytest.mark.parametrize("attack", [Quantise(), Quantise(bits=4), Prune(), Recalibrate()], ids=str)
def test_curve_has_one_point_after_the_model_as_it_came(attack: Quantise | Prune | Recalibrate) -> None:
    model = net(norm=True).train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    done, p = attack(model, case(model), 0), problem()
    assert done.curve.steps.tolist() == [0, 1] and done.curve.peak == 1
    assert done.curve.ids.tolist() == p.unexposed.tolist() and done.cost.gradients == 0
    for end, values in ((model, done.curve.values[0]), (done.model, done.curve.values[1])):
        with torch.no_grad():
            right = copy.deepcopy(end).eval()(p.data.inputs[p.unexposed]).argmax(1) == p.data.targets[p.unexposed]
        assert np.array_equal(right.double().numpy(), values)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
