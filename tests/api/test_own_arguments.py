"""What a notebook hands over: mistakes are told as a spec's are, and NumPy's arrays and numbers are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.base.errors import SpecError
from expunge.core.case import Case, Unlearned
from expunge.core.collect import collect
from expunge.methods.finetune import Finetune


def arrays(count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 4)), rng.integers(3, size=count)


@pytest.fixture(scope="module")
def case() -> Case:
    return expunge.case(nn.Linear(4, 3), forget=arrays(20), retain=arrays(30), test=arrays(9))


@pytest.fixture(scope="module")
def done(case: Case) -> Unlearned:
    return expunge.unlearn(case, "finetune", epochs=np.int64(1))


def test_two_attacks_of_one_label_are_refused_as_in_a_spec(case: Case, done: Unlearned) -> None:
    told = r"attacks\[1\]: 'relearn' is there twice; give one of them another label: .*\"label\""
    with pytest.raises(SpecError, match=told):
        expunge.audit(done, case, attacks=["relearn", {"name": "relearn", "k": 2}])
    with pytest.raises(SpecError, match=r"audits\[1\]: 'loss' is there twice"):
        expunge.audit(done, case, attacks=[], audits=["loss", "loss"])
    with pytest.raises(SpecError, match=r"diagnostics\[1\]: 'hardness' is there twice"):
        expunge.diagnose(case, ["hardness", {"name": "hardness", "ascent_weight": 0.5}])


def test_with_labels_both_run(case: Case, done: Unlearned) -> None:
    attacks = [{"name": "relearn", "epochs": 1}, {"name": "relearn", "k": 2, "epochs": 1, "label": "two"}]
    result = expunge.audit(done, case, attacks=attacks, audits=["performance"])
    assert {row["attack"] for row in result.rows} == {None, "relearn", "two"}


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ([{"k": 2}], r"attacks\[0\]: 'name' is missing; add it"),
        ("relearn", r"attacks: found 'relearn'; allowed: a list of names or tables; write attacks=\["),
        ({"name": "relearn"}, r"attacks: found .*; allowed: a list"),
        ([3], r"attacks\[0\]: found 3; allowed: a name, or a table"),
        ([{"name": 3}], r"attacks\[0\].name: found int; allowed: a name"),
        (["relern"], r"attacks\[0\].name: unknown attack 'relern'"),
    ],
)
def test_what_is_no_list_of_parts_is_told(case: Case, done: Unlearned, wanted: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        expunge.audit(done, case, attacks=wanted)


def test_swapped_arguments_are_told(case: Case, done: Unlearned) -> None:
    with pytest.raises(SpecError, match=r"done: found Case; allowed: what expunge.unlearn returned"):
        expunge.audit(case, done)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"case: found Unlearned; allowed: what expunge.case returned"):
        expunge.unlearn(done, "finetune")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="case: found Unlearned"):
        expunge.diagnose(done)  # type: ignore[arg-type]


def test_a_method_that_is_none_is_told_as_the_method(case: Case) -> None:
    with pytest.raises(SpecError, match=r"^method: unknown method 'scurb'.*did you mean 'scrub'"):
        expunge.unlearn(case, "scurb")
    with pytest.raises(SpecError, match=r"^method: found Finetune"):
        expunge.unlearn(case, Finetune())  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"^finetune: unknown key 'epoch'"):
        expunge.unlearn(case, "finetune", epoch=1)


def test_pairs_of_arrays_are_taken_in_the_precision_of_models() -> None:
    x, y = arrays(5)
    found = collect((x, y), where="forget")
    assert found.inputs.dtype == torch.float32 and torch.equal(found.inputs, torch.tensor(x, dtype=torch.float32))
    assert found.targets.tolist() == y.tolist() and torch.equal(found.items[2][0], found.inputs[2])
    with pytest.raises(SpecError, match=r"forget: inputs have shape \[5, 4\] and targets \[4\]"):
        collect((x, y[:4]), where="forget")


def test_numbers_of_numpy_are_numbers() -> None:
    made = Finetune(epochs=np.int64(3), learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    assert made == Finetune(epochs=3, learning_rate=0.5)
    assert type(made.epochs) is int and type(made.learning_rate) is float
    with pytest.raises(SpecError, match=r"epochs: found 2\.5"):
        Finetune(epochs=np.float64(2.5))  # type: ignore[arg-type]
