"""Each batch runs through a model once in an evaluation, and its numbers are those of separate passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.audits.performance import Performance
from expunge.core import once
from expunge.core.case import Case
from expunge.core.data import Batch
from expunge.core.forward import output_of
from expunge.core.once import once_per_batch
from expunge.evidence.scores import Scores
from expunge.testing._settings import PLAIN, REGULARISED, TOKENS, every_setting
from expunge.train.evaluation import skill

SETTINGS = {setting.name: setting for setting in every_setting()}


@contextmanager
def counted(model: nn.Module) -> Iterator[list[bytes]]:
    """The inputs of every call of the model."""
    calls: list[bytes] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].numpy().tobytes()))
    yield calls
    handle.remove()


def audited(name: str, seen: Callable[[nn.Module, Case], object]) -> tuple[object, list[bytes]]:
    setting = SETTINGS[name]
    model = setting.model()
    with counted(model) as calls:
        return seen(model, Case(0, setting.problem, model)), calls


@pytest.mark.parametrize("name", [PLAIN, REGULARISED, TOKENS])
def test_the_audit_runs_each_set_once_and_gives_the_numbers_of_separate_passes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, calls = audited(name, lambda model, case: Performance()(model, case, 0))
    assert len(calls) == len(set(calls)), "no input ran twice"
    monkeypatch.setattr(once, "OUTPUT_VALUES", 0)
    apart, every = audited(name, lambda model, case: Performance()(model, case, 0))
    assert len(every) > len(calls)
    assert isinstance(kept, list) and isinstance(apart, list) and len(kept) == len(apart) > 0
    for ours, theirs in zip(kept, apart, strict=True):
        assert isinstance(ours, Scores) and np.array_equal(ours.values, theirs.values)
        for mine, yours in ((ours.baseline, theirs.baseline), (ours.label, theirs.label)):
            assert mine is yours is None or (mine is not None and yours is not None and np.array_equal(mine, yours))


def test_skill_takes_one_pass() -> None:
    value, calls = audited(PLAIN, lambda model, case: skill(model, case.problem, case.problem.test))
    assert isinstance(value, float) and len(calls) == 1


def test_only_passes_without_gradients_of_the_same_model_in_evaluation_mode_are_kept() -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    batch = Batch(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), torch.arange(4))

    def output(module: nn.Module) -> Tensor:
        return output_of(module, batch)

    with once_per_batch(model), counted(model) as calls:
        model.train()
        with torch.no_grad():
            assert not torch.equal(output(other), output(model)) and len(calls) == 1
            model.eval()
            first = output(model)
            kept = first.clone()
            first.zero_()  # what an objective does to its logits stays its own
            assert torch.equal(output(model), kept) and len(calls) == 2
        assert output(model).requires_grad and len(calls) == 3
    with torch.no_grad():
        output(model)
    assert len(calls) == 3, "the hook is gone, and nothing is kept outside"
