"""The one loop: it counts, stops where it must, and otherwise does exactly what the plainest loop does."""

from __future__ import annotations

import copy
import math
from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import RunError
from expunge.core.case import Meter
from expunge.core.data import Batch, Data
from expunge.core.decisions import loss
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.objectives.classification import Classification
from expunge.train.loop import PairBatch, batch_count, batches, fit, in_order, paired
from expunge.train.optim import make_optimizer
from expunge.train.training import TrainedRecipe, Training


@pytest.fixture
def data() -> Data:
    inputs = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Data(inputs, torch.arange(50) % 4, torch.arange(40), torch.arange(40, 50), tuple("abcd"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Against the plainest loop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(("final", "clip"), [(1.0, None), (0.1, 0.5)])
def test_the_recipe_equals_the_plainest_loop_bit_by_bit(
    data: Data, optimizer: str, norm: str, final: float, clip: float | None
) -> None:
    settings = Training(
        epochs=3, batch_size=16, learning_rate=1e-2, optimizer=optimizer, weight_decay=1e-2, final=final, clip=clip
    )
    recipe = TrainedRecipe(CNN(width=4, hidden=8, norm=norm), settings, data)
    found = recipe.fit(recipe.build(0), data, data.train, 7)

    model = recipe.build(0).train()
    made = {
        "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, fused=True),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-2, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, weight_decay=1e-2, momentum=0.9),
    }[optimizer](list(model.parameters()))
    order, step, steps = generator(7), 0, 3 * 3
    for _ in range(3):
        permuted = data.train[torch.randperm(40, generator=order)]
        for i in range(0, 40, 16):
            ids = permuted[i : i + 16]
            if final != 1.0:
                made.param_groups[0]["lr"] = 1e-2 * (final + (1 - final) * (1 + math.cos(math.pi * step / steps)) / 2)
            made.zero_grad()
            F.cross_entropy(model(data.inputs[ids]), data.targets[ids]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            made.step()
            step += 1
    ours, theirs = found.state_dict(), model.state_dict()
    for name in ours:
        if final == 1.0:
            assert torch.equal(ours[name], theirs[name]), name
        else:
            # The cosine's factor is written in another order of operations: roundings of the learning rate.
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_the_seed_of_fit_decides_the_order(data: Data) -> None:
    recipe = TrainedRecipe(MLP(widths=[8]), Training(epochs=2, batch_size=16), data)
    first, same, other = (recipe.fit(recipe.build(0), data, data.train, seed)[1].weight for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


# --- Counting and budgets --------------------------------------------------------------------------------------------


def run(data: Data, meter: Meter | None = None, **settings: object) -> tuple[nn.Module, object, list[int]]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    computed: list[int] = []

    def loss_fn(batch: Batch) -> Tensor:
        computed.append(batch.size)
        return loss(Classification(classes=4).decisions(model, batch))

    parameters = list(model.parameters())
    items = batches(data, data.train, 16, 2, generator())
    result = fit(parameters, loss_fn, items, torch.optim.SGD(parameters, lr=0.1), meter=meter, **settings)
    return model, result, computed


def test_every_gradient_is_counted(data: Data) -> None:
    meter = Meter()
    _, result, computed = run(data, meter)
    assert meter.gradients == sum(computed) == 2 * 40
    assert result.steps == len(computed) == 6 and not result.exhausted and math.isfinite(result.loss)


@pytest.mark.parametrize(
    ("limit", "steps"), [(0, 0), (15, 0), (16, 1), (39, 2), (40, 3), (55, 3), (56, 4), (79, 5), (80, 6)]
)
def test_a_budget_is_never_exceeded_and_used_as_far_as_it_goes(data: Data, limit: int, steps: int) -> None:
    meter = Meter(limit)
    model, result, computed = run(data, meter)
    assert meter.gradients == sum(computed) <= limit
    assert result.steps == steps and result.exhausted == (steps < 6)
    assert math.isnan(result.loss) == (steps == 0)
    if steps == 3:
        # What was done is the same as without a limit, only shorter.
        whole = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        whole.load_state_dict({name: torch.full_like(t, 0.01) for name, t in whole.state_dict().items()})
        parameters = list(whole.parameters())
        items = islice(batches(data, data.train, 16, 2, generator()), 3)
        step = torch.optim.SGD(parameters, lr=0.1)
        fit(parameters, lambda batch: loss(Classification(classes=4).decisions(whole, batch)), items, step)
        assert torch.equal(model[1].weight, whole[1].weight)


def test_a_meter_goes_on_where_it_was(data: Data) -> None:
    meter = Meter(100, gradients=50)
    _, result, _ = run(data, meter)
    assert (result.steps, meter.gradients) == (3, 90)


def test_each_step_is_reported(data: Data) -> None:
    seen: list[tuple[int, float]] = []
    _, result, _ = run(data, on_step=lambda step, value: seen.append((step, value)))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1] == result.loss


# --- Divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_no_number_ends_it(data: Data, bad: float) -> None:
    weight = nn.Parameter(torch.ones(1))
    losses = iter([0.5, 0.25, bad, 0.1])
    optimizer, meter = torch.optim.SGD([weight], lr=0.125), Meter()
    items = batches(data, data.train, 16, 2, generator())
    with pytest.raises(RunError) as caught:
        fit([weight], lambda _: weight.sum() * 0 + next(losses), items, optimizer, meter=meter)
    message = str(caught.value)
    assert "at step 2 with learning rate 0.125" in message and "the last finite loss was 0.25" in message
    assert "lower learning_rate" in message
    # Two steps were taken and are charged, the third was not.
    assert meter.gradients == 32 and torch.equal(weight.detach(), torch.ones(1))


def test_a_bad_first_loss_says_that_there_was_none_before(data: Data) -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(RunError, match=r"at step 0 .* no loss before it was finite"):
        items = batches(data, data.train, 16, 1, generator())
        fit([weight], lambda _: weight.sum() * math.nan, items, torch.optim.SGD([weight], lr=1.0))


# --- Schedule and clipping -------------------------------------------------------------------------------------------


def rates_seen(schedule: object, steps: int = 4) -> list[list[float]]:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5}], lr=0.1)
    seen: list[list[float]] = []
    ids = torch.arange(steps * 2)
    items = [Batch(ids[:2], ids[:2], ids[:2])] * steps

    def note(*_: object) -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])

    fit([a, b], lambda _: (a + b).sum(), items, optimizer, schedule=schedule, on_step=note)
    # d loss / d weight is 1, so that plain SGD moves by the sum of its rates.
    torch.testing.assert_close(-a.detach(), torch.tensor([sum(rate[0] for rate in seen)]))
    return seen


def test_the_schedule_scales_each_group_by_its_own_rate() -> None:
    assert rates_seen(lambda step: 1 / (step + 1)) == [[1, 0.5], [1 / 2, 0.25], [1 / 3, 0.5 / 3], [1 / 4, 0.125]]
    assert rates_seen(None) == [[1, 0.5]] * 4


def test_the_cosine_goes_from_one_to_its_end() -> None:
    assert Training(final=1.0).schedule(10) is None
    schedule = Training(final=0.2).schedule(10)
    values = [schedule(step) for step in range(12)]
    assert values[0] == 1 and values[5] == pytest.approx(0.6) and values[10] == values[11] == pytest.approx(0.2)
    assert all(a > b for a, b in pairwise(values[:11]))


def test_clipping_limits_the_norm_over_all_parameters() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    one = torch.arange(1)
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    fit([a, b], lambda _: (3 * a + 4 * b).sum(), [Batch(one, one, one)], optimizer, clip=1.0)
    # clip_grad_norm_ divides by the norm plus 1e-6.
    torch.testing.assert_close(torch.cat([a, b]).detach(), torch.tensor([-0.6, -0.8]), rtol=1e-6, atol=0)


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 16, 17, 18, 32, 33, 40])
@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_an_epoch_has_each_example_once_and_no_lone_last_one(data: Data, n: int, size: int) -> None:
    ids = torch.randperm(40, generator=generator(3))[:n]
    epochs = [list(batches(data, ids, size, 1, generator(seed))) for seed in (0, 1)]
    for epoch in epochs:
        seen = torch.cat([batch.ids for batch in epoch])
        assert len(epoch) == batch_count(n, size)
        assert sorted(seen.tolist()) == sorted(ids.tolist())
        # One example that is left over is in the batch before; batches of one are there only if the size is one.
        assert all(batch.size == size for batch in epoch[:-1]) and epoch[-1].size <= size + 1
        assert epoch[-1].size > 1 or size == 1 or n == 1
        assert all(torch.equal(batch.inputs, data.inputs[batch.ids]) for batch in epoch)
    if n > 2:
        assert [b.ids.tolist() for b in epochs[0]] != [b.ids.tolist() for b in epochs[1]]


def test_each_epoch_has_an_order_of_its_own(data: Data) -> None:
    orders = [batch.ids.tolist() for batch in batches(data, data.train, 40, 3, generator())]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == data.train.tolist() for order in orders)


def test_pairs_cycle_the_forget_set(data: Data) -> None:
    retain, forget = torch.arange(10, 40), torch.arange(7)
    pairs = list(paired(data, retain, forget, 8, 3, 2, generator()))
    assert len(pairs) == 8 and all(isinstance(pair, PairBatch) for pair in pairs)
    # 7 = 3 + 4: one example left over is in the batch before.
    assert [pair.retain.size for pair in pairs] == [8, 8, 8, 6] * 2
    assert [pair.forget.size for pair in pairs] == [3, 4] * 4
    passes = [torch.cat([pair.forget.ids for pair in pairs[at : at + 2]]) for at in range(0, 8, 2)]
    assert all(sorted(ids.tolist()) == forget.tolist() for ids in passes)
    assert sorted(torch.cat([pair.retain.ids for pair in pairs[:4]]).tolist()) == retain.tolist()


@pytest.mark.parametrize(("forget", "size"), [(1, 1), (1, 64), (5, 1), (3, 64)])
def test_pairs_end_whatever_the_size_of_the_forget_set(data: Data, forget: int, size: int) -> None:
    pairs = list(paired(data, torch.arange(10, 40), torch.arange(forget), 16, size, 1, generator()))
    assert [pair.forget.size for pair in pairs] == [min(forget, size)] * 2


def test_evaluation_keeps_the_order(data: Data) -> None:
    ids = torch.tensor([5, 3, 30, 1, 8])
    found = list(in_order(data, ids, batch_size=2))
    assert [batch.size for batch in found] == [2, 2, 1]
    assert torch.cat([batch.ids for batch in found]).tolist() == ids.tolist()


# --- Optimisers ------------------------------------------------------------------------------------------------------


def test_weight_decay_is_coupled_in_adam_and_not_in_adamw() -> None:
    """Without a gradient of the loss AdamW shrinks by lr * decay, Adam takes a full step of size lr."""
    for name, expected in (("adam", 1 - 0.1), ("adamw", 1 - 0.1 * 0.5), ("sgd", 1 - 0.1 * 0.5)):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = make_optimizer(name, [weight], 0.1, 0.5)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        # Adam's epsilon of 1e-8 beside a gradient of 0.5.
        assert weight.item() == pytest.approx(expected, rel=1e-7)


def test_what_is_not_passed_is_not_trained(data: Data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    model[1].requires_grad_(False)
    before = copy.deepcopy(model)
    recipe = TrainedRecipe(lambda _: model, Training(epochs=2, weight_decay=0.1), data)
    after = recipe.fit(model, data, data.train, 0)
    assert torch.equal(after[1].weight, before[1].weight) and not torch.equal(after[3].weight, before[3].weight)
