"""The benchmarks of importances, diagnostics and others at a small size: they run, and what they compare is what they say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from expunge.core.problem import Problem
from expunge.data.fashion_mnist import FashionMNIST
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.tasks.label_swap import LabelSwap


@pytest.fixture
def importance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import importance

    monkeypatch.setattr(importance, "EXAMPLES", 40)
    monkeypatch.setattr(importance, "FORGET", 10)
    return importance


def small() -> Problem:
    return LabelSwap(count=10)(FashionMNIST(train=40)(), 0, {})


def test_importance_of_batches(importance: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    importance.main(repeats=1, epochs=1)
    found = [float(ratio) for ratio in re.findall(r"their importance (\S+) of ours", capsys.readouterr().out)]
    assert len(found) == 2 * len(importance.BATCH_SIZES)
    assert found[0] == found[4] == 1.0
    # An example's part in a batch's mean is one of b, so that the mean's square is the smaller the more there are.
    assert found[:4] == sorted(found[:4], reverse=True) and found[3] < 0.2


def test_three_ways_are_the_same(importance: ModuleType) -> None:
    problem = small()
    model = importance.trained(CNN(width=4, hidden=8), problem, 1)
    ours = importance._measured(model, problem)()
    for way in (importance.one_by_one, importance.vmapped):
        other = importance._flat(way(model, problem, problem.train))
        # Single precision, 40 terms.
        torch.testing.assert_close(other, ours, rtol=1e-4, atol=1e-5 * float(ours.max()))


def test_what_diagnostics_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import diagnosis

    monkeypatch.setattr(diagnosis, "WIDTHS", [8])
    monkeypatch.setattr(diagnosis, "TRAIN", 300)
    monkeypatch.setattr(diagnosis, "FORGET", 20)
    diagnosis.main(repeats=1, epochs=1)
    found = re.findall(r"^(\w+) +(\S+) epochs' gradients", capsys.readouterr().out, re.MULTILINE)
    assert {name for name, _ in found} >= {"coherence", "hardness", "recommendation", "sharpness", "stability_limit"}
    # Two epochs are promised; noise and gradients of `sharpness` take one derivative where two are counted here.
    assert all(float(epochs) <= (2.4 if name == "sharpness" else 2.0) for name, epochs in found)


def test_products_and_gram_matrices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import eigen, gram

    monkeypatch.setattr(eigen, "MODELS", {"mlp": MLP(widths=[4])})
    eigen.main(repeats=1)
    found = re.findall(r"relative error (\S+): products ours (\S+), eigsh ncv 20 (\S+),", capsys.readouterr().out)
    assert [error for error, _, _ in found] == ["1e-03", "1e-06"]
    assert all(1 < float(ours) < float(theirs) for _, ours, theirs in found)
    monkeypatch.setattr(gram, "COUNT", 16)
    for name in gram.MODELS:
        torch.testing.assert_close(gram.by_factors(name), gram.by_vmap(name), rtol=1e-4, atol=1e-4)


def test_factors_and_the_edit_of_a_layer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import kronecker

    monkeypatch.setattr(kronecker, "LENGTH", 6)
    kronecker.main(repeats=1, width=8, d_out=32, d_in=96)
    shown = capsys.readouterr().out
    assert re.search(r"factors of 8 matrices over forward and backward, width 8 \(aim 1.3\): \d", shown)
    assert re.search(r"32 x 96: decomposition \S+ s, edit \S+ s, .* predicted, the peak grew by", shown)
    monkeypatch.setattr(kronecker, "memory", lambda: 1)
    kronecker.edit(32, 96)
    assert "refused" in capsys.readouterr().out
