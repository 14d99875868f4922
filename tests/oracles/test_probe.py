"""Linear probes on features made by hand, and on models whose output layer was turned away from what they know."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.audits.performance import Performance
from expunge.audits.probe import Probe, fit_probe
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.evidence.scores import Scores
from expunge.models.cnn import CNN
from expunge.models.gpt import GPT


def test_separable_features_are_read_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 2000)
    noise = generator.normal(size=(2000, 3))
    told = np.concatenate([np.eye(4)[labels] * 5, noise], axis=1)
    assert (fit_probe(told[:1000], labels[:1000])(told[1000:]) == labels[1000:]).all()
    right = (fit_probe(noise[:1000], labels[:1000])(noise[1000:]) == labels[1000:]).mean()
    assert right == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 1000))  # four standard errors of guessing


def test_scale_and_offset_of_features_do_not_matter() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 300)
    features = np.eye(3)[labels] + generator.normal(scale=0.7, size=(300, 3))
    scale, offset = np.array([1e-3, 1.0, 1e3]), np.array([5.0, -2.0, 700.0])
    assert np.array_equal(
        fit_probe(features, labels)(features), fit_probe(features * scale + offset, labels)(features * scale + offset)
    )


def test_constant_features_one_label_and_values_that_are_not_finite() -> None:
    assert fit_probe(np.ones((5, 2)), np.full(5, 7))(np.zeros((3, 2))).tolist() == [7, 7, 7]
    labels = np.array([0, 1, 0, 1])
    features = np.stack([labels * 2.0, np.ones(4)], axis=1)
    assert fit_probe(features, labels)(np.array([[2.0, 1.0], [np.nan, 1.0]])).tolist() == [1, -1]
    assert fit_probe(np.full((4, 2), np.inf), labels)(features).tolist() == [-1] * 4


class Named(nn.Module):
    """Inputs of four numbers; the layer `second` holds the class in the clear, the head looks away from it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.pair = Pair()
        with torch.no_grad():
            self.second.weight.copy_(torch.eye(4))
            self.second.bias.zero_()
            self.head.weight.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        self.first(inputs)
        logits: Tensor = self.head(self.pair(self.second(inputs))[0])
        return logits


class Pair(nn.Module):
    """As attention layers of some libraries do, returns more than one thing."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        return inputs, None


def plain() -> Problem:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(150) % 3
    inputs = torch.randn(150, 4, generator=generator) * 0.1
    inputs[torch.arange(150), targets] += 2
    data = Data(inputs, targets, torch.arange(100), torch.arange(100, 150), ("a", "b", "c"))
    return Problem(data, torch.arange(30), torch.arange(30, 100), data.test)


def found(scores: list[Scores], metric: str = "recoverability", split: str = "forget") -> np.ndarray:
    return next(entry.values for entry in scores if entry.key == (metric, split))


@pytest.mark.parametrize("layer", ["", "second", "pair"])
def test_what_the_head_hides_is_read_from_the_layer_before(layer: str) -> None:
    problem, model = plain(), Named()
    case = Case(0, problem, model)
    assert found(Performance()(model, case, 0), "accuracy").mean() < 0.5
    assert found(Probe(layer=layer)(model, case, 0)).mean() == 1.0


def test_a_layer_that_is_not_there_is_named_with_those_that_are() -> None:
    case = Case(0, plain(), Named())
    with pytest.raises(
        SpecError, match=r"audit\.probe\.layer: unknown layer 'secnd'.*first, head, pair, second.*mean 'second'"
    ):
        Probe(layer="secnd")(case.original, case, 0)


def test_features_that_do_not_belong_to_examples_are_refused() -> None:
    problem = plain()

    class Whole(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.sum(0, keepdim=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.head = Whole(), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            self.whole(inputs)
            logits: Tensor = self.head(inputs)
            return logits

    case = Case(0, problem, Model())
    with pytest.raises(SpecError, match=r"'whole' has a tensor of shape \[1, 4\], not features for each of 70"):
        Probe(layer="whole")(case.original, case, 0)


def test_no_hook_is_left_and_modes_are_kept() -> None:
    problem, model = plain(), Named().train()
    model.second.eval()
    modes = [module.training for module in model.modules()]
    Probe()(model, Case(0, problem, model), 0)
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_exposed_part_is_fitted_on_only_where_asked() -> None:
    # One class is not retained at all: its examples can be read only by a probe that has seen exposed ones.
    problem = plain()
    third = problem.data.targets == 2
    forget = problem.data.train[third[problem.data.train]]
    gone = Problem(problem.data, forget, problem.data.train[~third[problem.data.train]], problem.test)
    model = Named()
    assert found(Probe()(model, Case(0, gone, model), 0)).mean() == 0.0
    assert found(Probe(exposed=True)(model, Case(0, gone, model), 0)).mean() == 1.0


def test_digits_learned_by_heart(memorised: list[Case]) -> None:
    """Positive control: the original's features tell wrong labels that the retrained model's do not."""
    values: dict[tuple[str, bool], list[float]] = {}
    for case in memorised:
        for exposed in (False, True):
            audit = Probe(exposed=exposed)
            for name, model in (("original", case.original), ("reference", case.reference)):
                scores = audit(model, case, 0)
                values.setdefault((name, exposed), []).append(found(scores).mean())
                if not exposed and name == "reference":
                    assert found(scores, "recoverability_of_truth").mean() > 0.8
    for exposed in (False, True):
        assert min(np.subtract(values["original", exposed], values["reference", exposed])) > 0.05
    assert np.mean(values["original", True]) > np.mean(values["original", False])
    # Turning the output layer away changes what the model says, and nothing of what can be read.
    turned = copy.deepcopy(case.original)
    with torch.no_grad():
        head = turned[-1]
        head.weight.copy_(head.weight.roll(1, 0))
        head.bias.copy_(head.bias.roll(1, 0))
    assert found(Performance()(turned, case, 0), "accuracy").mean() < 0.1
    assert np.array_equal(found(Probe()(turned, case, 0)), found(Probe()(case.original, case, 0)))


def test_layers_of_convolutional_and_language_models() -> None:
    data = Digits(train=300, test=60)()
    problem = Problem(data, data.train[:40], data.train[40:], data.test)
    model = CNN(width=4)(data)
    for layer in ("", "0", "9"):
        assert np.isfinite(found(Probe(layer=layer)(model, Case(0, problem, model), 0))).all()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 5, (40, 7), generator=generator)
    targets = torch.where(torch.arange(6) < 2, -100, tokens[:, 1:])
    text = Data(tokens[:, :-1], targets, torch.arange(30), torch.arange(30, 40), tuple("abcde"))
    read = Problem(text, text.train[:10], text.train[10:], text.test)
    gpt = GPT(width=8, layers=1, heads=2)(text)
    for layer in ("", "blocks.0", "norm"):
        values = found(Probe(layer=layer)(gpt, Case(0, read, gpt), 0))
        assert set(np.round(values * 4)) <= {0, 1, 2, 3, 4}  # shares of four decided tokens
    assert np.array_equal(
        found(Probe()(gpt, Case(0, read, gpt), 0)), found(Probe(layer="norm")(gpt, Case(0, read, gpt), 0))
    )
