"""The straight line between two models: ends that are exact, paths that are flat, barriers known in closed form."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.audits.distance import Distance, l2
from expunge.audits.path import Path, interpolate
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions, mean_losses
from expunge.core.modules import state_digest
from expunge.core.problem import Problem
from expunge.evidence.scores import Scores
from expunge.models.gpt import GPT


class Scalar(nn.Module):
    """One weight; what its output costs is decided by the objective below."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight.expand(len(inputs))


class Landscape:
    """Decisions whose cross-entropy is a given function of the weight: logits (0, log(e^f - 1)) against the first."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        height = self.function(model(batch.inputs))
        logits = torch.stack([torch.zeros_like(height), torch.expm1(height).log()], 1)
        return Decisions(logits, torch.zeros(batch.size, dtype=torch.int64), torch.arange(batch.size))

    loss_unit = "nats"

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_losses(self.decisions(model, batch), batch.size)


def data(n: int = 40) -> Data:
    inputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return Data(inputs, torch.arange(n) % 3, torch.arange(n - 8), torch.arange(n - 8, n), tuple("abc"))


def case_of(original: nn.Module, objective: object | None = None) -> Case:
    pool = data()
    problem = Problem(pool, torch.arange(10), torch.arange(10, 32), pool.test, objective=objective)
    return Case(0, problem, original)


def by_split(scores: list[Scores]) -> dict[str, Scores]:
    return {entry.split: entry for entry in scores}


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        model.train()
        with torch.no_grad():
            for _ in range(seed + 1):
                model(torch.randn(16, 4))
        return model.eval()


# The sum of two roundings of numbers of order 1, in double precision.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize(("start", "end"), [(-1.0, 1.0), (-2.0, 1.0), (0.5, 3.0), (2.0, 2.0)])
@pytest.mark.parametrize(("curvature", "height"), [(1.0, 1.0), (-0.5, 6.0)])
def test_the_barrier_of_a_quadratic(start: float, end: float, curvature: float, height: float) -> None:
    """On height + c w^2 / 2 the path minus its chord is -c (end - start)^2 t (1 - t) / 2: none for a valley, and for a
    ridge -c (end - start)^2 / 8, in the middle, which an odd number of points holds."""
    landscape = Landscape(lambda w: height + curvature * w.square() / 2)
    found = by_split(Path(points=21)(Scalar(end), case_of(Scalar(start), landscape), 0))
    t = np.linspace(0, 1, 21)
    w = start + t * (end - start)
    for split in ("retain", "forget"):
        np.testing.assert_allclose(found[split].values, height + curvature * w**2 / 2, **EXACT)
        expected = max(0.0, -curvature * (end - start) ** 2 / 8)
        np.testing.assert_allclose(found[split].reduced(), expected, **EXACT)


def test_the_barrier_is_measured_from_the_chord_not_from_the_lower_end() -> None:
    """A slope has no barrier, however much higher one of its ends lies."""
    found = by_split(Path()(Scalar(3.0), case_of(Scalar(0.0), Landscape(lambda w: 1 + w)), 0))
    np.testing.assert_allclose(found["retain"].values[[0, -1]], [1, 4], **EXACT)
    np.testing.assert_allclose(found["retain"].reduced(), 0, **EXACT)


def test_a_model_has_no_barrier_to_itself() -> None:
    model = net(1)
    scores = Path(points=5)(copy.deepcopy(model), case_of(model), 0)
    for entry in scores:
        # (1 - t) w + t w is w up to a rounding of single precision, and the loss follows.
        assert np.ptp(entry.values) < 1e-6 and entry.reduced() < 1e-6
        assert entry.role == "predictor"


def test_the_ends_are_the_two_models_bit_by_bit() -> None:
    start, end = net(1), net(4)
    models = [copy.deepcopy(model) for model in interpolate(start, end, 5)]
    first, last = start.state_dict(), end.state_dict()
    for name in first:
        assert torch.equal(models[-1].state_dict()[name], last[name]), name
        if first[name].is_floating_point():
            assert torch.equal(models[0].state_dict()[name], first[name]), name
    # Running statistics move along: without that, the middle would be normalised by one end's.
    middle = models[2].state_dict()
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.equal(first[name], last[name])
        torch.testing.assert_close(middle[name], (first[name] + last[name]) / 2)


def test_the_loss_at_the_ends_is_that_of_the_two_models() -> None:
    start, end = net(1), net(4)
    found = by_split(Path(points=3)(end, case_of(start), 0))
    pool = case_of(start).problem
    batch = pool.data.batch(pool.unexposed)
    for model, value in ((start, found["forget"].values[0]), (end, found["forget"].values[-1])):
        with torch.no_grad():
            by_hand = nn.functional.cross_entropy(model(batch.inputs), batch.targets)
        # A mean in double precision of the same single-precision losses.
        assert value == pytest.approx(float(by_hand), rel=1e-6)


def test_ties_hold_along_the_path() -> None:
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    ids = torch.arange(3)
    pool = Data(tokens, tokens, ids[:2], ids[2:], tuple("abcde"))
    models = [GPT(width=8, layers=1, heads=2)(pool) for _ in range(2)]
    for t, between in zip((0, 0.5, 1), interpolate(*models, 3), strict=True):
        assert between.head.weight is between.tokens.weight
        expected = (1 - t) * models[0].tokens.weight + t * models[1].tokens.weight
        torch.testing.assert_close(between.head.weight, expected)


def test_neither_end_is_touched() -> None:
    start, end = net(1), net(4)
    digests = [state_digest(start), state_digest(end)]
    list(interpolate(start, end, 3))
    Path(points=3)(end, case_of(start), 0)
    assert digests == [state_digest(start), state_digest(end)]


# --- Distance --------------------------------------------------------------------------------------------------------


def test_the_distance_is_the_norm_of_the_difference() -> None:
    model = net(1)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[0].weight[0, 0] += 3
        moved[3].bias[1] -= 4
        moved[1].running_mean += 100  # statistics are no weights
    (found,) = Distance()(moved, case_of(model), 0)
    # 3-4-5, each weight rounded once to single precision.
    assert found.reduced() == pytest.approx(5, rel=1e-6) and found.role == "predictor"
    assert l2(model, model) == 0


def test_a_tied_weight_counts_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[1].weight = model[0].weight
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[0].weight += 1
    assert l2(model, moved) == pytest.approx(2, rel=1e-15)


def test_models_of_another_shape_have_no_distance() -> None:
    with pytest.raises(SpecError, match="different parameters"):
        l2(nn.Linear(2, 3), nn.Linear(2, 4))
