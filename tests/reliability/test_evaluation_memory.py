"""Evaluation holds a bounded number of the model's outputs at a time, whatever the objective and the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expunge.attacks.relearn import Relearn
from expunge.audits.function_distance import FunctionDistance
from expunge.audits.performance import Performance
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.decisions import OUTPUT_VALUES, Decisions, decision_losses
from expunge.core.problem import Problem
from expunge.objectives.reconstruction import Reconstruction
from expunge.objectives.segmentation import Segmentation
from expunge.pipeline.gallery import gallery
from expunge.train.evaluation import losses
from expunge.train.loop import EVALUATED, evaluation_size
from expunge.train.monitors._measure import mean_cross_entropy, mean_over, sample

VOCABULARY, LENGTH, TEXTS = 2**16, 32, 12
"""Two million logits a text: all texts together have 1.5 times `OUTPUT_VALUES`."""


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that an operation returned."""

    def __init__(self, operation: str = "") -> None:
        super().__init__()
        self.operation, self.elements = operation, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        if self.operation in str(function):
            sizes = [value.numel() for value in tree_leaves(returned) if isinstance(value, Tensor)]
            self.elements = max([self.elements, *sizes])
        return returned


def texts() -> tuple[nn.Module, Problem]:
    """A forget and a retain set of 11 texts each and 11 test texts, and a model whose logits are wide."""
    rows = torch.randint(VOCABULARY, (3 * TEXTS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    ids = torch.arange(3 * TEXTS)
    labels = tuple(map(str, range(VOCABULARY)))
    data = Data(rows[:, :-1], rows[:, 1:], ids[: 2 * TEXTS], ids[2 * TEXTS :], labels)
    model = nn.Sequential(nn.Embedding(VOCABULARY, 2), nn.Linear(2, VOCABULARY))
    return model, Problem(data, ids[:TEXTS], ids[TEXTS : 2 * TEXTS], data.test)


def masks() -> tuple[nn.Module, Problem]:
    """Twelve pictures of 256 by 256 pixels with a class of 24 for each pixel."""
    ids, targets = torch.arange(14), torch.arange(24).repeat(14 * 2731)[: 14 * 256 * 256].view(14, 256, 256)
    data = Data(torch.rand(14, 1, 256, 256), targets, ids[:12], ids[12:], objective=Segmentation())
    return nn.Conv2d(1, 24, 1), Problem(data, ids[:11], ids[11:12], data.test)


def pictures() -> tuple[nn.Module, Problem]:
    """Eighteen pictures of 1024 by 1024 pixels, reconstructed."""
    ids, inputs = torch.arange(20), torch.rand(20, 1, 1024, 1024)
    data = Data(inputs, inputs, ids[:18], ids[18:], objective=Reconstruction())
    return nn.Conv2d(1, 1, 1), Problem(data, ids[:17], ids[17:18], data.test)


def relearning(model: nn.Module, problem: Problem) -> None:
    Relearn(epochs=1, batch_size=1, points=1)(model, Case(0, problem, model), 0)


def monitored(model: nn.Module, problem: Problem) -> None:
    mean_over(mean_cross_entropy(problem.data), model, sample(problem.data, problem.forget, 100, 0))


EVALUATIONS: dict[str, tuple[Callable[[], tuple[nn.Module, Problem]], Callable[[nn.Module, Problem], object]]] = {
    "metrics of texts": (texts, lambda m, p: Performance()(m, Case(0, p, m), 0)),
    "losses of texts": (texts, lambda m, p: losses(m, p, p.forget)),
    "beside the original": (texts, lambda m, p: FunctionDistance()(m, Case(0, p, m), 0)),
    "an attack's curve": (texts, relearning),
    "the gallery": (texts, lambda m, p: gallery(p, [(("original", None), m)], 0)),
    "a monitor": (texts, monitored),
    "a class per pixel": (masks, lambda m, p: losses(m, p, p.forget)),
    "reconstruction": (pictures, lambda m, p: losses(m, p, p.forget)),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_no_tensor_is_larger_than_the_bound(name: str) -> None:
    make, evaluate = EVALUATIONS[name]
    model, problem = make()
    assert len(problem.forget) * problem.data.objective.output_size(problem.data.targets) > OUTPUT_VALUES
    with Largest() as largest:
        evaluate(model, problem)
    assert OUTPUT_VALUES // 8 < largest.elements <= OUTPUT_VALUES


def test_log_probabilities_of_one_long_text_are_taken_in_parts_and_are_the_same() -> None:
    count, classes = 70, 2**18
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(0))
    decisions = Decisions(logits, torch.arange(count), torch.zeros(count, dtype=torch.int64))
    assert logits.numel() > OUTPUT_VALUES
    whole = decision_losses(decisions)  # with gradients, in one part
    with torch.no_grad(), Largest("log_softmax") as largest:
        parts = decision_losses(decisions)
    assert 0 < largest.elements <= OUTPUT_VALUES
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("context", "vocabulary", "size"),
    [(64, 256, EVALUATED), (128, 256, EVALUATED), (48, 256, EVALUATED), (128, 49152, 2), (8192, 128_256, 1)],
)
def test_texts_of_bytes_are_evaluated_as_before(context: int, vocabulary: int, size: int) -> None:
    rows, ids = torch.zeros(2, context, dtype=torch.int64), torch.arange(2)
    data = Data(rows, rows, ids[:1], ids[1:], tuple(map(str, range(vocabulary))))
    assert evaluation_size(data) == size


def test_a_smaller_batch_gives_the_values_of_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, problem = texts()
    whole = losses(model, problem, problem.forget)
    monkeypatch.setattr("expunge.train.loop.OUTPUT_VALUES", 1)
    assert evaluation_size(problem.data) == 1
    # Another kernel may add in another order: a few units of the last place.
    np.testing.assert_allclose(losses(model, problem, problem.forget), whole, rtol=1e-6)
