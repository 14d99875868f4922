"""Three unlearnings that did nothing of the kind, and one that is right: each has to be seen for what it is.

A model that was never unlearned, random weights, and a teacher that shares storage with its student. The first two go
the whole way - spec, training, attack, audits, verdict - on images of digits with wrong labels, which a small network
learns by heart.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge import testing
from expunge.base.errors import SpecError
from expunge.base.spec import parse
from expunge.core.decisions import kl
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import frozen_copy, require_distinct, shared_storage
from expunge.evidence.verdict import Verdict
from expunge.pipeline.run import RunResult, run


class NeverUnlearned(Method):
    """Returns what it was given."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return student


class RandomWeights(Method):
    """Knows nothing any more, of anything."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        for module in student.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        return student


SPEC = {
    "name": "controls",
    "seeds": [0, 1, 2],
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "train": {"epochs": 60, "batch_size": 64, "learning_rate": 5e-3, "final": 0.3},
    # All of the corruption is discovered: references and the retrained row see the same examples.
    "forget": {"name": "label_swap", "count": 100},
    "method": [
        {"name": f"{__name__}:NeverUnlearned", "label": "never"},
        {"name": f"{__name__}:RandomWeights", "label": "random"},
        {"name": "retrain"},
    ],
    "attack": [{"name": "relearn", "epochs": 2}],
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder: Path = tmp_path_factory.mktemp("controls")
    return run(parse(SPEC, folder), folder)


@pytest.fixture(scope="module")
def verdicts(outcome: RunResult) -> dict[str, Verdict]:
    return {verdict.model: verdict for verdict in outcome.verdicts}


def mean(outcome: RunResult, model: str, split: str) -> float:
    (value,) = [
        row["value"]
        for row in outcome.rows
        if (row["model"], row["split"], row["metric"]) == (model, split, "accuracy")
        and row["seed"] is None
        and row["attack"] is None
    ]
    return float(value)


def test_there_is_something_to_forget(outcome: RunResult) -> None:
    """Positive control: the original has the wrong labels by heart, the reference does not, and both are of use."""
    assert mean(outcome, "original", "forget") > 0.9
    assert mean(outcome, "reference", "forget") < 0.1
    assert min(mean(outcome, "original", "test"), mean(outcome, "reference", "test")) > 0.75


def test_a_model_never_unlearned_is_incomplete(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["never"].verdict == "incomplete"
    assert not {"erased", "inconclusive"} & set(verdicts["never"].flags)


def test_random_weights_are_damaged(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["random"].verdict == "damaged"
    assert not {"erased", "inconclusive"} & set(verdicts["random"].flags)


def test_retraining_is_not_accused(verdicts: dict[str, Verdict]) -> None:
    """The null control: without it, an instrument that accuses everybody would pass the two above."""
    assert verdicts["retrain"].verdict in ("erased", "inconclusive")


class SharedTeacher(Method):
    """Keeps the forget set's outputs far from a teacher's, which is the student under another name."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        teacher = copy.copy(student).eval()
        problem, batch = job.problem, job.problem.data.batch(job.problem.forget)
        if job.meter.affords(batch.size):
            job.meter.charge(batch.size)
            with torch.no_grad():
                wanted = problem.objective.decisions(teacher, batch).logits
            kl(wanted, problem.objective.decisions(student, batch).logits).backward()
        return student


def test_a_teacher_that_shares_storage_breaks_a_contract() -> None:
    with pytest.raises(testing.ContractError, match="a teacher of its own"):
        testing.check_method(SharedTeacher())


def test_a_teacher_that_shares_storage_is_refused() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    shallow = copy.copy(student)
    with pytest.raises(SpecError, match="shares storage"):
        require_distinct(shallow, student)
    # One tensor is enough, a buffer too.
    partly = copy.deepcopy(student)
    partly[1].running_mean = student[1].running_mean
    assert shared_storage(partly, student) == ["1.running_mean"]
    with pytest.raises(SpecError, match=r"1\.running_mean"):
        require_distinct(partly, student)


def test_a_teacher_of_its_own_is_accepted() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = frozen_copy(student)
    require_distinct(teacher, student)
    student.train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
