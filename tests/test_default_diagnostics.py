"""What runs where no diagnostic is named, and what it may cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.base import registry
from expunge.core.data import Data
from expunge.core.method import Method
from expunge.data.digits import Digits
from expunge.data.fashion_mnist import FashionMNIST
from expunge.methods.finetune import Finetune
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.neggrad_plus import NegGradPlus
from expunge.methods.npo import NPO
from expunge.pipeline.default_diagnostics import EPOCHS, LEAST, default_set, planned, with_plan


def scored(data: Data) -> Data:
    return replace(data, cscore=torch.full((len(data),), 0.5))


@pytest.mark.parametrize("train", [120, 10_000])
def test_all_together_cost_two_epochs_or_little(train: int) -> None:
    data = scored(Digits(train=train)() if train < 1000 else FashionMNIST(train=10_000)())
    chosen = default_set(data)
    by_default = [name for name in registry.names("diagnostic") if registry.load("diagnostic", name).by_default]
    assert list(chosen.settings) == by_default and not chosen.left_out
    budgets = [has["epochs"] * train for has in chosen.settings.values() if "epochs" in has]
    assert len(budgets) == 5 and min(budgets) == pytest.approx(max(EPOCHS * train / 6, LEAST))
    # On a set so small that a share would show nothing, as little as can be said.
    assert sum(budgets) == pytest.approx(max(EPOCHS * train, 5 * LEAST))


def test_what_would_train_networks_is_left_out() -> None:
    chosen = default_set(Digits(train=120)())
    assert "memorization" not in chosen.settings and "C-scores" in chosen.left_out["memorization"]


@pytest.mark.parametrize(
    ("method", "ascent_weight", "forget_batch"),
    [
        (Finetune(optimizer="sgd"), 0.0, 128),
        (NegGradPlus(optimizer="sgd", alpha=0.75), 0.25, 64),
        (GradientAscent(optimizer="sgd", batch_size=32), 1.0, 32),
    ],
)
def test_a_plan_is_descent_with_ascent(method: Method, ascent_weight: float, forget_batch: int) -> None:
    plan = planned([NPO(), method, Finetune(optimizer="sgd", learning_rate=9.0)])
    assert plan["ascent_weight"] == ascent_weight and plan["forget_batch_size"] == forget_batch
    assert plan["learning_rate"] == method.settings()["learning_rate"]


def test_other_methods_are_no_plan() -> None:
    assert planned([NPO(optimizer="sgd"), Finetune(), NegGradPlus(optimizer="sgd", alternate=True)]) == {}


def test_a_diagnostic_takes_what_it_has_a_setting_for() -> None:
    plan = planned([NegGradPlus(optimizer="sgd", learning_rate=0.5)])
    assert with_plan("sharpness", {"momentum": 0.5}, plan) == {"learning_rate": 0.5, "momentum": 0.5}
    assert with_plan("hardness", {"ascent_weight": 0.5}, plan) == {"learning_rate": 0.5, "ascent_weight": 0.5}
    assert with_plan("memorization", {}, plan) == with_plan("no_such_diagnostic", {}, plan) == {}
