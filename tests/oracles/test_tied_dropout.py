"""Example-tied dropout: its masks, what is off, and which weights are the memory's."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from _tied import Net, dense_cnn, dense_resnet9, mask_of, masks_of
from _toy import EXACT
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.blocks import with_blocks
from expunge.blocks._architecture import Placed
from expunge.blocks._tied_layer import base_channels, example_hash
from expunge.blocks.tied_dropout import (
    SHARED,
    TiedDropout,
    TiedLayer,
    base_only,
    drop_memory,
    memory_weights,
    with_memory,
)
from expunge.core.case import train_model
from expunge.core.data import Batch, Data
from expunge.core.decisions import loss
from expunge.core.example_ids import example_ids
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.models.resnet9 import ResNet9
from expunge.objectives.classification import Classification
from expunge.train.training import TrainedRecipe, Training

IDS = torch.tensor([0, 1, 7, 1234567, 2**40, SHARED])
RELUS, RELUS_WITHOUT_NORM = ("2", "5", "8", "11"), ("1", "3", "5", "8")


def tied(architecture, at, fixed: float = 0.5, memory: float = 0.0):
    """The architecture with example-tied dropout."""
    return with_blocks(architecture, [Placed(TiedDropout(fixed, memory), tuple(at), "tied_dropout")])


HALVES = [
    tied(CNN(width=8, hidden=16), RELUS),
    tied(CNN(width=8, hidden=16, norm="batch"), RELUS),
    tied(CNN(width=8, hidden=16, norm="none"), RELUS_WITHOUT_NORM, 0.25),
    tied(ResNet9(width=8), ("conv?", "res?")),
]
NAMES = ["cnn", "cnn-batch", "cnn-none", "resnet9", "mlp"]


def images(count: int = 24) -> Data:
    inputs = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return Data(inputs, torch.arange(count) % 3, torch.arange(count - 4), torch.arange(count - 4, count), tuple("abc"))


def built(architecture, data: Data) -> nn.Module:
    torch.manual_seed(0)
    return architecture(data)


def run(model: nn.Module, inputs: Tensor, ids: Tensor) -> Tensor:
    with example_ids(ids):
        logits: Tensor = model(inputs)
    return logits


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    value = loss(Classification(classes=3).decisions(model, batch))
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return {name: g for (name, _), g in zip(model.named_parameters(), found, strict=True)}


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0.0, 0.2, 0.5, 1.0])
def test_a_mask_is_the_hash_of_id_and_channel(memory):
    mask = TiedLayer(0.3, memory).mask(IDS, 10)
    assert torch.equal(mask, masks_of(IDS.tolist(), 0.3, memory, 10))
    # Of two layers with as many channels the masks are the same, of others not.
    assert torch.equal(TiedLayer(0.3, memory).mask(IDS, 10), mask)
    assert mask[:, :3].all() and mask[:, 3:].all() == (memory == 1)


def test_memory_channels_are_on_as_often_as_said_and_independent():
    ids, channels, memory = torch.arange(5000), 40, 0.2
    on = TiedLayer(1e-9, memory).mask(ids, channels)[:, 1:].double()
    # Four standard errors of a Bernoulli mean, over everything, over each channel and over each example; of the
    # 39 + 5000 means, those of channels within four, and of examples within five.
    assert abs(on.mean() - memory) < 4 * math.sqrt(memory * (1 - memory) / on.numel())
    assert (on.mean(0) - memory).abs().max() < 4 * math.sqrt(memory * (1 - memory) / len(ids))
    assert (on.mean(1) - memory).abs().max() < 5.5 * math.sqrt(memory * (1 - memory) / 39)
    noise = 1 / math.sqrt(len(ids))
    across = torch.corrcoef(on.T) - torch.eye(39, dtype=torch.double)
    assert across.abs().max() < 5 * noise
    neighbours = torch.corrcoef(torch.stack([on[1:].flatten(), on[:-1].flatten()]))[0, 1]
    other = TiedLayer(1e-9, memory).mask(ids, channels + 1)[:, 1:-1].double()
    widths = torch.corrcoef(torch.stack([on.flatten(), other.flatten()]))[0, 1]
    assert max(abs(neighbours), abs(widths)) < 4 / math.sqrt(on.numel())


def test_the_hash_has_53_bits_without_sign():
    drawn = example_hash(torch.arange(2000), 20)
    assert drawn.min() >= 0 and drawn.max() < 2**53
    assert len(drawn.unique()) == drawn.numel()


def test_an_example_has_its_mask_in_any_batch_and_draws_nothing():
    net = Net(memory=0.5).train()
    inputs, state = torch.randn(6, 5).double(), torch.get_rng_state()
    together = run(net, inputs, IDS)
    torch.testing.assert_close(together[[4, 1]], run(net, inputs[[4, 1]], IDS[[4, 1]]), **EXACT)
    torch.testing.assert_close(together, net.by_hand(inputs, masks_of(IDS.tolist(), 0.5, 0.5)), **EXACT)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(together, run(net, inputs, IDS.flip(0)))


def test_rules_hold_inside_one_block_for_one_model_only():
    net, other = (Net(memory=0.5) for _ in range(2))
    inputs = torch.randn(6, 5).double()
    base, own = torch.arange(8) < 4, masks_of(IDS.tolist(), 0.5, 0.5)
    more = masks_of(IDS.tolist(), 0.5, 0.9)

    def check(model: Net, on: Tensor) -> None:
        torch.testing.assert_close(run(model, inputs, IDS), model.by_hand(inputs, on), **EXACT)

    check(net.train(), own)
    check(net.eval(), base)
    with with_memory(net):
        check(net, own)
        check(other.eval(), base)
        with with_memory(net, 0.9):
            check(net, more)
        with with_memory(net, 1.0):
            check(net, torch.ones(8))
        with base_only(net):
            check(net.train(), base)
        check(net.eval(), own)
    check(net.eval(), base)
    with pytest.raises(RuntimeError), base_only(net.train()):
        raise RuntimeError
    check(net, own)


def test_without_ids_there_is_only_the_base():
    net, inputs = Net(memory=0.5), torch.randn(6, 5).double()
    assert torch.equal(net.eval()(inputs), run(net, inputs, IDS))
    with pytest.raises(SpecError, match=r"no ids for 6 examples.*example_ids"):
        net.train()(inputs)
    with pytest.raises(SpecError, match="5 ids for 6 examples"):
        run(net, inputs, IDS[:5])
    reserved = Net(memory=0.0).train()
    assert torch.equal(reserved(inputs), reserved.eval()(inputs))


def test_what_is_off_is_zero_even_where_it_was_no_number():
    layer = TiedLayer(0.5, dim=-1)
    hidden = torch.tensor([[[1.0, 2.0, math.inf, math.nan]]])
    assert layer(hidden).tolist() == [[[1, 2, 0, 0]]]


def test_at_least_one_channel_is_on():
    assert [base_channels(c, 0.5) for c in (1, 2, 3, 8)] == [1, 1, 2, 4]
    assert base_channels(10, 0.01) == 1


# --- the base --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", HALVES, ids=NAMES[:4])
def test_the_base_is_a_narrower_net(architecture):
    model, inputs = built(architecture, images()).double(), images().inputs.double()
    share = architecture.placed[0].block.fixed
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.add_(0.2 * torch.arange(len(module.running_mean)))
        expected = (
            dense_cnn(model, share, 4)(inputs)
            if isinstance(architecture.architecture, CNN)
            else dense_resnet9(model, inputs, share)
        )
        torch.testing.assert_close(model.eval()(inputs), expected, rtol=1e-9, atol=1e-11)
        with with_memory(model, 1.0):
            assert not torch.allclose(run(model, inputs, torch.arange(24)), expected, rtol=0.1)


@pytest.mark.parametrize("architecture", [*HALVES, tied(MLP(widths=[12, 6]), ("2", "4"))], ids=NAMES)
def test_memory_that_is_reserved_learns_nothing(architecture):
    """Neither by gradient nor by Adam, which would move whatever has one."""
    data = images()
    recipe = TrainedRecipe(architecture, Training(epochs=2, batch_size=8), data)
    model = recipe.build(3).train()
    where = memory_weights(model, Classification(classes=3), data.batch(data.train))
    slopes = gradients(model, data.batch(data.train))
    trained, start = (dict(m.named_parameters()) for m in (train_model(recipe, data, data.train, 3), recipe.build(3)))
    for name, off in where.items():
        assert (slopes[name][off] == 0).all()
        assert torch.equal(trained[name][off], start[name][off])
    moved = sum(int((trained[name] != start[name]).sum()) for name in where)
    assert moved > 0.5 * sum(int((~off).sum()) for off in where.values())


def test_memory_that_is_used_learns_what_its_examples_teach():
    data = images()
    model = built(tied(CNN(width=8, hidden=16), RELUS, memory=0.5), data).train()
    for example in range(6):
        slope = gradients(model, data.batch(torch.tensor([example])))["10.weight"].abs().sum(1)
        on = torch.tensor(mask_of(example, 16, 8, 0.5))
        assert (slope[~on] == 0).all()
        assert (slope[on] > 0).any()


# --- which weights are the memory's ----------------------------------------------------------------------------------


def expected_memory(model: nn.Module) -> dict[str, Tensor]:
    """Of a `cnn` or `mlp` with half the channels: rows from one half on, columns from one half on after a mask."""
    found, first = {}, True
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    for name, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            off = torch.zeros_like(parameter, dtype=torch.bool)
            if name != last:
                off[len(off) // 2 :] = True
            if parameter.ndim > 1:
                if not first:
                    off[:, off.shape[1] // 2 :] = True
                first = False
            found[f"{name}.{kind}"] = off
    return found


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("size", [8, 16])
def test_rows_that_write_memory_and_columns_that_read_it(size, norm):
    inputs = torch.zeros(6, 1, size, size)  # their values do not matter
    data = Data(inputs, torch.arange(6) % 3, torch.arange(4), torch.arange(4, 6), tuple("abc"))
    at = RELUS_WITHOUT_NORM if norm == "none" else RELUS
    models = [
        built(tied(CNN(width=8, hidden=16, norm=norm), at), data),
        built(tied(MLP(widths=[12, 6]), ("2", "4")), data),
    ]
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.sub_(5)  # nor do those of the weights: here every ReLU is dead
        for module in models[0].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(100)
    for model in models:
        found, expected = (
            memory_weights(model, Classification(classes=3), data.batch(data.train)),
            expected_memory(model),
        )
        assert {name: int(off.sum()) for name, off in found.items()} == {n: int(o.sum()) for n, o in expected.items()}
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_memory_weights_change_nothing_and_ignore_what_is_never_used():
    net = Net(memory=0.5).eval()
    net.spare = nn.Linear(2, 2).double()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = memory_weights(
        net, Classification(classes=3), Batch(torch.zeros(2, 5).double(), torch.zeros(2).long(), IDS[:2])
    )
    assert not found["spare.weight"].any() and found["first.weight"][4:].all() and not found["first.weight"][:4].any()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not net.training and net.tied.rule is None


def test_what_is_mixed_into_the_base_is_the_bases():
    class Mixing(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(inputs))
            logits: Tensor = self.last(self.tied(hidden - hidden.mean(1, keepdim=True)))
            return logits

    batch = Batch(torch.zeros(2, 5).double(), torch.zeros(2).long(), IDS[:2])
    found = memory_weights(Mixing(), Classification(classes=3), batch)
    assert not found["first.weight"].any() and found["last.weight"][:, 4:].all()


@pytest.mark.parametrize("architecture", HALVES, ids=NAMES[:4])
def test_dropped_memory_leaves_the_base_and_cannot_be_revived(architecture):
    data = images()
    model = built(architecture, data).train()
    where = memory_weights(model, Classification(classes=3), data.batch(data.train))
    batch = data.batch(torch.arange(20))
    with torch.no_grad():
        before = model.eval()(data.inputs)
        drop_memory(model, where)
        assert torch.equal(model(data.inputs), before)
    with with_memory(model.train(), 0.7):
        slopes = gradients(model, batch)
    assert all((slopes[name][off] == 0).all() for name, off in where.items())
    assert sum(int((slope != 0).sum()) for slope in slopes.values()) > 100
    # As a control: one half alone at zero does get gradients.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.startswith(("0.", "conv1")):
                parameter.masked_fill_(where[name], 0.5)
    with with_memory(model, 0.7):
        slopes = gradients(model, batch)
    assert any((slopes[name][off] != 0).any() for name, off in where.items())


def test_frozen_memory_stays():
    net = Net()
    net.first.requires_grad_(False)
    start = net.first.weight.clone()
    batch = Batch(torch.zeros(2, 5).double(), torch.zeros(2).long(), IDS[:2])
    drop_memory(net, memory_weights(net, Classification(classes=3), batch))
    assert torch.equal(net.first.weight, start)
    assert (net.last.weight[:, 4:] == 0).all() and (net.last.weight[:, :4] != 0).all()
