"""Every method on a small MLP and a small GPT: it runs, repeats itself, and costs what its docstring says."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from expunge.base import registry
from expunge.base.references import bibtex
from expunge.base.seeds import derive
from expunge.core.case import train_model
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import state_digest
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.data.python_docs import PythonDocs
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.tasks.planted_text import PlantedText
from expunge.train.training import TrainedRecipe, Training

BRIEF = {"epochs": 2, "batch_size": 32}
PAIRED = BRIEF | {"forget_batch_size": 16}
SETTINGS = {
    "assd": {},
    "bad_teacher": BRIEF | {"retain_share": 0.5},
    "cf_k": BRIEF,
    "circuit_breakers": PAIRED,
    "connectivity_breaking": PAIRED,
    "delete": BRIEF,
    "eu_k": BRIEF,
    "finetune": BRIEF,
    "fisher_forgetting": {},
    "gradient_ascent": BRIEF | {"chances": 1e-9, "learning_rate": 1e-9},
    "l1_sparse": BRIEF,
    "lfssd": {"alpha": 1.0, "dampening": 0.5},
    "neggrad_plus": PAIRED,
    "noisy_distillation": PAIRED,
    "npo": PAIRED,
    "potion": {"tries": 3},
    "random_relabel": PAIRED,
    "salun": PAIRED,
    "scrub": PAIRED | {"forget_epochs": 1, "rewind": True},
    "ssd": {"alpha": 1.0, "dampening": 0.5},
    "tar": {"outer_steps": 3, "batch_size": 32, "forget_batch_size": 8, "copies": 2, "inner_steps": 4},
    "task_negation": BRIEF,
    "weight_attenuation": BRIEF,
    "weight_distance_reg": BRIEF,
    "weight_distortion": BRIEF,
    "weight_dropout": BRIEF,
}
REPAIR = (
    *("cf_k", "eu_k", "finetune", "l1_sparse"),
    *("weight_attenuation", "weight_distance_reg", "weight_distortion", "weight_dropout"),
)
ADDED = ("circuit_breakers", "neggrad_plus", "noisy_distillation", "npo", "random_relabel")
FORGET = 20
"""No multiple of any forget batch size above, so that batches which are not full have to be counted as such."""


def cycled(steps: int, examples: int, batch_size: int) -> int:
    """Examples in so many batches of a set that is cycled, the last batch of each pass being what is left."""
    passes, rest = divmod(steps, math.ceil(examples / batch_size))
    return passes * examples + min(rest * batch_size, examples)


def cost(name: str, retain: int, forget: int) -> int:
    """Per-example gradients as the docstrings count them, with the settings above."""
    paired = 2 * retain + cycled(2 * math.ceil(retain / 32), forget, 16)
    return {
        "bad_teacher": 2 * (forget + math.ceil(retain / 2)),
        "fisher_forgetting": retain,
        **dict.fromkeys(("assd", "lfssd", "potion", "ssd"), retain + forget),
        "salun": forget + paired,
        "connectivity_breaking": 2 * retain + paired,
        **dict.fromkeys(ADDED, paired),
        "scrub": 2 * retain + forget,
        "tar": cycled(3, retain, 32) + 2 * cycled(3 * 2 * 4, forget, 8),
        **dict.fromkeys(REPAIR, 2 * retain),
        **dict.fromkeys(("delete", "gradient_ascent", "task_negation"), 2 * forget),
    }[name]


@pytest.fixture(scope="module", params=["mlp", "gpt"])
def setting(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, Problem]:
    if request.param == "mlp":
        data = Digits(train=160, test=40)()
        problem = Problem(data, torch.arange(FORGET), torch.arange(FORGET, 160), data.test)
        recipe = TrainedRecipe(MLP(widths=[32]), Training(epochs=12, batch_size=32), data)
    else:
        problem = PlantedText(count=FORGET, copies=1)(PythonDocs(train=32, test=8)(), 0, {})
        recipe = TrainedRecipe(GPT(width=16, layers=1, heads=2), Training(epochs=4, batch_size=16), problem.data)
    return train_model(recipe, problem.data, problem.train, 0), problem


@pytest.mark.parametrize("name", SETTINGS)
def test_runs_repeats_itself_and_costs_what_it_says(name, setting):
    model, problem = setting
    method: Method = registry.load("method", name)(**SETTINGS[name])
    before = state_digest(model)
    first, second = (method(model, problem, None, 4) for _ in range(2))
    assert len(problem.forget) == FORGET
    assert state_digest(model) == before
    assert state_digest(first.model) == state_digest(second.model)
    assert all(tensor.isfinite().all() for tensor in first.model.state_dict().values())
    if not (name == "gradient_ascent" and first.cost.gradients == 0):  # nothing is recited yet: it has to stop
        assert state_digest(first.model) != before
        assert first.cost.gradients == cost(name, len(problem.retain), len(problem.forget))
        expected = method.expected_gradients(len(problem.retain), len(problem.forget))
        assert first.cost.gradients / 2 <= expected <= 2 * first.cost.gradients
    limited = method(model, problem, None, 4, budget=first.cost.gradients // 2)
    assert limited.cost.gradients <= first.cost.gradients // 2


def test_alternating_takes_whole_passes_over_either_set(setting):
    model, problem = setting
    method = registry.load("method", "neggrad_plus")(**PAIRED, alternate=True)
    charged = method(model, problem, None, 4).cost.gradients
    assert charged == method.expected_gradients(len(problem.retain), FORGET) == 2 * (len(problem.retain) + FORGET)


def test_every_method_is_tried():
    # These have tests of their own: test_methods.py, tests/pipeline/test_one_stage.py for what a file holds, and a file
    # with the method's name.
    without = {"retrain", "checkpoint"}
    without |= {"balanced_subnet", "curvature_edit", "delete_codes", "learned_mask", "localized_pruning"}
    without |= {"rem", "remove_modes", "symmetry"}
    assert set(registry.names("method")) - without == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_is_documented(name):
    method = registry.load("method", name)
    assert method.paper[-4:].isdigit() and f"year = {{{method.paper[-4:]}}}" in bibtex(method.cite, where="method")[0]
    module = __import__(method.__module__, fromlist=["_"])
    assert "Cost: " in module.__doc__


class Keeps(Method):
    """Changes nothing and keeps what it was given."""

    jobs: ClassVar[list[Job]] = []

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        self.jobs.append(job)
        return student


def test_a_job_holds_what_the_call_was_given():
    data = Digits()()
    problem, model = Problem(data, data.train[:FORGET], data.train[FORGET:90], data.test), MLP(widths=(4,))(data)
    Keeps()(model, problem, None, 3, 70)
    (job,) = Keeps.jobs
    assert job.problem is problem and job.recipe is None and job.seed == 3
    assert job.meter.affords(70) and not job.meter.affords(71)
    assert job.device == next(model.parameters()).device
    # The numbers of a name follow from the seed and the name alone, whatever was drawn before.
    expected = torch.rand(5, generator=torch.Generator().manual_seed(derive(3, "batches")))
    for _ in range(2):
        assert torch.equal(torch.rand(5, generator=job.generator("batches")), expected)
    assert not torch.equal(torch.rand(5, generator=job.generator("labels")), expected)
