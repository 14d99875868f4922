"""Monitors see what is there and leave no trace: sharpness against dense Hessians, alarms against histories by hand."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import RunError, SpecError
from expunge.core.modules import state_digest
from expunge.train.loop import fit
from expunge.train.monitors import FeatureLossMonitor, SharpnessMonitor, class_directions, watch
from expunge.train.monitors.sharpness import edge_of

Pair = tuple[Tensor, Tensor]


def examples(count: int = 24, inputs: int = 6) -> Pair:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=generator)


def net(inputs: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def mean_loss(model: nn.Module, batch: Pair) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def dense_top(model: nn.Module, batch: Pair) -> float:
    names = dict(model.named_parameters())
    shapes = [p.shape for p in names.values()]

    def loss(flat: Tensor) -> Tensor:
        pieces = [p.view(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), batch[0]), batch[1]
        )

    flat = torch.cat([p.detach().flatten() for p in names.values()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


class Sizeable(tuple):  # type: ignore[type-arg]
    """A pair that `fit` can charge for."""

    size = 24


def steps_of(model: nn.Module, monitors: Any, count: int = 12, **settings: Any) -> torch.optim.SGD:
    batch = examples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, **settings)
    on_step = watch(model, *(make(optimizer) for make in monitors))
    items = [Sizeable(batch)] * count
    fit(list(model.parameters()), lambda item: mean_loss(model, item), items, optimizer, on_step=on_step)
    return optimizer


# --- Sharpness -------------------------------------------------------------------------------------------------------


def test_it_is_the_dense_hessians_largest_eigenvalue() -> None:
    model, batch, tops, losses = net(), examples(), [], []
    kept: list[SharpnessMonitor] = []

    def make(optimizer: torch.optim.Optimizer) -> Any:
        kept.append(SharpnessMonitor(mean_loss, _cut(batch), optimizer, every=3, tolerance=1e-9, limit=60))
        return kept[0]

    def oracle(step: int, asked: nn.Module) -> None:
        if step % 3 == 0:
            tops.append(dense_top(asked, batch))
            losses.append(float(mean_loss(asked, batch).detach()))

    steps_of(model, [make, lambda _: oracle])
    found = kept[0]
    assert found.steps == [3, 6, 9, 12] and found.edges == [4.0] * 4
    assert found.sharpness == pytest.approx(tops, rel=1e-9) and found.losses == pytest.approx(losses, rel=1e-12)
    assert all(abs(a - b) <= bound for a, b, bound in zip(found.sharpness, tops, found.bounds, strict=True))
    assert json.loads(json.dumps(found.record))["sharpness"] == found.sharpness
    assert {len(column) for column in found.record.values()} == {4}


def _cut(batch: Pair) -> list[Pair]:
    """Batches of different sizes, which a mean over batches must weigh."""
    return [(batch[0][:5], batch[1][:5]), (batch[0][5:], batch[1][5:])]


class Quadratic(nn.Module):
    """The loss is sum_i curvatures_i w_i^2 / 2, whatever the batch."""

    def __init__(self, curvatures: Tensor) -> None:
        super().__init__()
        self.curvatures, self.w = curvatures, nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))

    def forward(self) -> Tensor:
        return (self.curvatures * self.w.square()).sum() / 2


def quadratic_loss(model: nn.Module, _: Any) -> Tensor:
    loss: Tensor = model()
    return loss


def test_a_top_that_moves_to_an_orthogonal_vector_is_found() -> None:
    """The last vector is an exact eigenvector of both Hessians; alone, it would be taken for the top of the second."""
    model = Quadratic(torch.tensor([10.0, *[1.0] * 30, 5.0]).double())
    monitor = SharpnessMonitor(quadratic_loss, [torch.zeros(1)], every=1)
    monitor(1, model)
    model.curvatures[-1] = 20.0
    monitor(2, model)
    assert monitor.sharpness == pytest.approx([10, 20], rel=1e-3) and monitor.edges == [math.inf] * 2


def test_the_last_vector_saves_products() -> None:
    """Of a long spectrum that hardly changes; a monitor without a memory takes the same start anew."""
    model = Quadratic(torch.logspace(-3, 1, 400).double())
    warm = SharpnessMonitor(quadratic_loss, [torch.zeros(1)], every=1, tolerance=1e-3)
    cold = []
    for step in range(1, 6):
        model.curvatures *= 1 + 0.02 * torch.rand(400, generator=torch.Generator().manual_seed(step)).double()
        warm(step, model)
        fresh = SharpnessMonitor(quadratic_loss, [torch.zeros(1)], every=1, tolerance=1e-3, seed=step)
        fresh(step, model)
        cold.append(fresh.products[0])
        assert warm.sharpness[-1] == pytest.approx(float(model.curvatures.max()), rel=1e-3)
    assert warm.products[0] == pytest.approx(cold[0], abs=3)
    assert sum(warm.products[1:]) < 0.8 * sum(cold[1:])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.6},
        {"momentum": 0.6, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.5},
        {"weight_decay": 2.0},
        {"momentum": 0.9, "weight_decay": 1.0},
    ],
)
def test_the_edge_is_where_a_quadratic_begins_to_diverge(settings: dict[str, Any]) -> None:
    for share, holds in ((0.98, True), (1.02, False)):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, **settings)
        model = Quadratic(torch.tensor([share * edge_of(optimizer)]).double())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
        for _ in range(1500):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        assert (abs(model.w.item()) < 1e-3) if holds else (abs(model.w.item()) > 1e3)


def test_the_edge_follows_the_schedule() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = SharpnessMonitor(mean_loss, [examples()], optimizer, every=1)
    monitor(1, model)
    optimizer.param_groups[0]["lr"] = 0.25
    monitor(2, model)
    assert monitor.edges == [4.0, 8.0] and monitor.sharpness[0] == pytest.approx(monitor.sharpness[1], rel=1e-3)


def test_a_diverged_model_is_recorded_as_such() -> None:
    model = net()
    monitor = SharpnessMonitor(mean_loss, [examples()], every=1)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    monitor(1, model)
    assert math.isnan(monitor.sharpness[0]) and math.isnan(monitor.losses[0]) and monitor.products == [0]


def test_no_second_derivative_is_named() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return slope * 2

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x)

    model = nn.Sequential(nn.Linear(6, 3), Layer()).double()
    with pytest.raises(RunError, match=r"1 \(Layer\)"):
        SharpnessMonitor(mean_loss, [examples()], every=1)(1, model)


def test_optimisers_without_an_edge_are_refused() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    with pytest.raises(SpecError, match=r"Adam rescales its steps.*optimizer=None"):
        SharpnessMonitor(mean_loss, [examples()], torch.optim.Adam([a]))
    with pytest.raises(SpecError, match="groups have different settings"):
        edge_of(torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5}]))
    with pytest.raises(SpecError, match="it maximises, or its step size is 0"):
        edge_of(torch.optim.SGD([a], lr=0.1, maximize=True))
    with pytest.raises(SpecError, match="every = 0"):
        SharpnessMonitor(mean_loss, [examples()], every=0)
    with pytest.raises(SpecError, match="at least one batch"):
        SharpnessMonitor(mean_loss, [])


# --- No trace --------------------------------------------------------------------------------------------------------


class Lively(nn.Module):
    """Everything that a measurement could disturb: dropout, batch norm, a frozen mode, a tie of buffers to the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.still, self.b = nn.BatchNorm1d(8).eval(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.still(self.drop(torch.tanh(self.norm(self.a(x))))))


def noisy_loss(model: nn.Module, batch: Pair) -> Tensor:
    torch.rand(3)  # a loss may draw
    return mean_loss(model, batch)


def trained(watched: bool) -> tuple[nn.Module, Tensor, dict[str, Any], list[Any]]:
    torch.manual_seed(5)
    model = Lively().double()
    batch, optimizer = examples(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitors: list[Any] = []
    if watched:
        monitors = [
            SharpnessMonitor(noisy_loss, _cut(batch), optimizer, every=2),
            FeatureLossMonitor(noisy_loss, [batch], class_directions(*batch), every=1),
        ]
    on_step = watch(model, *monitors)
    fit(
        list(model.parameters()), lambda item: mean_loss(model, item), [Sizeable(batch)] * 7, optimizer, on_step=on_step
    )
    return model, torch.get_rng_state(), optimizer.state_dict(), monitors


def test_training_is_the_same_bit_for_bit() -> None:
    plain, state, moments, _ = trained(watched=False)
    seen, state_seen, moments_seen, monitors = trained(watched=True)
    assert all(len(monitor.steps) for monitor in monitors)
    assert state_digest(plain) == state_digest(seen) and torch.equal(state, state_seen)
    for one, other in zip(plain.parameters(), seen.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    for key, held in moments["state"].items():
        assert torch.equal(held["momentum_buffer"], moments_seen["state"][key]["momentum_buffer"])
    # The control: a measurement in training mode would have moved the statistics.
    before = state_digest(seen)
    seen(examples()[0])
    assert state_digest(seen) != before


def test_a_loop_of_ones_own_calls_it() -> None:
    model, batch = net(), examples()
    monitor = SharpnessMonitor(mean_loss, [batch], every=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(11):
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
        monitor(step, model)
    assert monitor.steps == [0, 5, 10]


# --- Feature loss ----------------------------------------------------------------------------------------------------


class History(nn.Module):
    """A model without training: its first layer's alignment, the second one's norm and the loss are what they are set to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(100, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
        self.loss = 0.0

    def become(self, alignment: float, norm: float, loss: float) -> History:
        with torch.no_grad():
            self.first.weight.zero_()
            # The length of the row must not matter.
            self.first.weight[0, :2] = 3 * torch.tensor([alignment, math.sqrt(1 - alignment**2)])
            self.second.weight.fill_(norm)
        self.loss = loss
        return self


UNIT = torch.eye(100)[0]
ALARM = {
    "it fades": ([(0.1, 1, 3), (0.8, 1, 2), (0.71, 2, 1)], [3]),
    "a tenth": ([(0.8, 1, 2), (0.72, 2, 2)], [2]),
    "not by a tenth": ([(0.8, 1, 2), (0.73, 2, 1)], []),
    "the loss rises": ([(0.8, 1, 2), (0.5, 2, 2.1)], []),
    "the second layer shrinks": ([(0.8, 2, 2), (0.5, 2, 1)], []),
    "it was no more than chance": ([(0.19, 1, 2), (0.1, 2, 1)], []),
    "a little more than chance": ([(0.21, 1, 2), (0.1, 2, 1)], [2]),
    "it was back when the loss had fallen": ([(0.8, 1, 2), (0.6, 2, 3), (0.75, 2, 1)], []),
    "it comes back": ([(0.8, 1, 3), (0.6, 2, 2), (0.9, 3, 1)], [2]),
    "from a later peak": ([(0.5, 1, 3), (0.9, 5, 2), (0.7, 4, 1), (0.7, 6, 1)], [4]),
    "the loss diverges": ([(0.8, 1, 2), (0.5, 2, math.nan)], []),
}


@pytest.mark.parametrize("name", ALARM)
def test_the_alarm_goes_off(name: str) -> None:
    history, alarms = ALARM[name]
    model = History()
    monitor = FeatureLossMonitor(lambda m, _: torch.tensor(m.loss), [torch.zeros(1)], UNIT, every=1)
    for step, state in enumerate(history, 1):
        monitor(step, model.become(*state))
    assert monitor.alarms == alarms and monitor.fired == (alarms[0] if alarms else None)
    assert monitor.alignments == pytest.approx([s for s, _, _ in history]) and monitor.norms == [
        n for _, n, _ in history
    ]
    assert monitor.record["alignment"] == monitor.alignments and monitor.losses[0] == history[0][2]


def test_weights_that_are_no_numbers_are_no_peak() -> None:
    monitor = FeatureLossMonitor(lambda m, _: torch.tensor(m.loss), [torch.zeros(1)], UNIT, every=1)
    for step, state in enumerate([(0.3, math.nan, 2), (math.nan, 1, 2), (0.8, 1, 2), (0.6, 2, 1), (math.nan, 3, 1)], 1):
        monitor(step, History().become(*state))
    assert monitor.peak == 2 and monitor.alarms == [4] and math.isnan(monitor.alignments[1])
    first = FeatureLossMonitor(lambda m, _: torch.tensor(m.loss), [torch.zeros(1)], UNIT, every=1)
    for step, state in enumerate([(math.nan, 1, 2), (0.8, 1, 2), (0.6, 2, 1)], 1):
        first(step, History().become(*state))
    assert first.peak == 1 and first.fired == 3


def test_alignment_is_the_share_of_the_norm_in_the_span() -> None:
    """Against a projection by least squares; neither basis nor lengths of the directions matter."""
    model, batch = net(), examples()
    directions = torch.randn(2, 6, dtype=torch.float64)
    weight = model[0].weight.detach()
    fitted = torch.linalg.lstsq(directions.T, weight.T).solution
    expected = float((directions.T @ fitted).norm() / weight.norm())
    mixed = torch.stack([directions[0] * 5, directions[0] - 2 * directions[1], directions.sum(0)])
    for given in (directions, mixed):
        monitor = FeatureLossMonitor(mean_loss, [batch], given, every=1)
        monitor(1, model)
        assert monitor.alignments == pytest.approx([expected], rel=1e-10)
        assert monitor.norms == pytest.approx([float(model[2].weight.detach().norm())], rel=1e-12)


def test_class_directions_are_the_means_without_their_mean() -> None:
    x, y = examples()
    found = class_directions(x.view(24, 2, 3), y)
    for label in range(3):
        torch.testing.assert_close(found[label], x[y == label].mean(0) - x.mean(0))
    # They sum to zero where classes have one size; their span has a dimension less than there are classes at most.
    assert found.shape == (3, 6)


def student(c_2: float, steps: int) -> FeatureLossMonitor:
    """Descent on a fixed large sample by a two-layer network from the model of two time scales; rows on the sphere."""
    torch.manual_seed(0)
    inputs, units, count, step, ratio = 20, 24, 3000, 0.1, 0.2
    x = torch.randn(count, inputs)
    y = x[:, 0] + c_2 * (x[:, 0] ** 2 - 1) / math.sqrt(2)

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(inputs, units, bias=False), nn.Linear(units, 1, bias=False)

        def forward(self, batch: Tensor) -> Tensor:
            z = self.first(batch)
            return self.second(z + 0.5 * (z * z - 1) / math.sqrt(2)).squeeze(1) / units

    model = Student()
    with torch.no_grad():
        model.first.weight[:, 0] = 0
        model.first.weight.copy_(F.normalize(model.first.weight, dim=1))
        model.second.weight.fill_(1.0)
    fresh = torch.randn(2000, inputs)
    monitor = FeatureLossMonitor(
        lambda m, b: (m(b[0]) - b[1]).square().mean() / 2,
        [(fresh, fresh[:, 0] + c_2 * (fresh[:, 0] ** 2 - 1) / math.sqrt(2))],
        torch.eye(inputs)[0],
        every=20,
    )
    for at in range(steps):
        loss = (model(x) - y).square().mean() / 2
        by_first, by_second = torch.autograd.grad(loss, [model.first.weight, model.second.weight])
        with torch.no_grad():
            model.first.weight.copy_(F.normalize(model.first.weight - units * step * by_first, dim=1))
            model.second.weight -= units * step * ratio * by_second
        monitor(at, model)
    return monitor


def test_it_fires_on_a_network_whose_feature_fades_and_not_where_it_is_kept() -> None:
    fading, kept = student(-0.5, 800), student(1.0, 400)
    assert fading.fired is not None and fading.fired > fading.steps[fading.peak]
    assert fading.alignments[-1] < 0.8 * max(fading.alignments) and fading.losses[-1] < fading.losses[fading.peak]
    assert kept.fired is None and kept.alignments[-1] > 0.95


def test_what_is_refused_by_the_alarm() -> None:
    batch = examples()

    def make(directions: Tensor, **settings: Any) -> FeatureLossMonitor:
        return FeatureLossMonitor(mean_loss, [batch], directions, every=1, **settings)

    with pytest.raises(SpecError, match="reads 6 inputs"):
        make(torch.ones(5))(1, net())
    with pytest.raises(SpecError, match="unknown layer '9'"):
        make(torch.ones(6), first="9")(1, net())
    with pytest.raises(SpecError, match="no two layers"):
        make(torch.ones(6))(1, nn.Sequential(nn.Linear(6, 3).double()))
    with pytest.raises(SpecError, match="span all 6 dimensions"):
        make(torch.eye(6))
    for bad in (torch.zeros(6), torch.full((6,), math.nan), torch.ones(2, 2, 2)):
        with pytest.raises(SpecError, match="directions"):
            make(bad)
    with pytest.raises(SpecError, match="drop = 1"):
        make(torch.ones(6), drop=1.0)
    with pytest.raises(SpecError, match="nothing was measured"):
        _ = make(torch.ones(6)).peak
    other = make(torch.ones(5), first="2", second="0")
    other(1, copy.deepcopy(net()))
    assert other.norms[0] == pytest.approx(float(net()[0].weight.detach().norm()))
