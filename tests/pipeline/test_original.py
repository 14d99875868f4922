"""Original means the case's original: for a method anywhere in a chain, for its statistics, and for an attack."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import expunge
from expunge.base.errors import SpecError
from expunge.base.spec import parse
from expunge.base.store import Store
from expunge.core import checkpoint
from expunge.core.method import Method
from expunge.core.problem import Problem
from expunge.methods.bad_teacher import BadTeacher
from expunge.methods.circuit_breakers import CircuitBreakers
from expunge.methods.connectivity_breaking import ConnectivityBreaking
from expunge.methods.delete import DELETE
from expunge.methods.neggrad_plus import NegGradPlus
from expunge.methods.noisy_distillation import NoisyDistillation
from expunge.methods.npo import NPO
from expunge.methods.potion import Potion
from expunge.methods.random_relabel import RandomRelabel
from expunge.methods.rem import REM
from expunge.methods.salun import SalUn
from expunge.methods.scrub import SCRUB
from expunge.methods.tar import TAR
from expunge.methods.task_negation import TaskNegation
from expunge.methods.weight_distance_reg import WeightDistanceReg
from expunge.pipeline.plan import Plan
from expunge.pipeline.stage import WEIGHTS
from expunge.testing._settings import every_setting
from expunge.testing._state import difference
from helpers import Table, finished, run, tiny

PARTS = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from expunge.core.method import Method
from expunge.attacks._unexposed import edited
from expunge.core.contracts import Attack

def copy(student, state):
    student.load_state_dict(state)
    return student

@dataclass(frozen=True)
class Reads(Method):
    "Returns the original."

    def apply(self, student, job):
        return copy(student, job.original.state_dict())

@dataclass(frozen=True)
class Measures(Method):
    "Returns the original that its statistics hold."
    measures: ClassVar[bool] = True

    def measure(self, model, job):
        return {name: tensor.clone() for name, tensor in job.original.state_dict().items()}

    def apply(self, student, job):
        return copy(student, job.statistics)

@dataclass(frozen=True)
class Restores(Attack):
    "Attacks with the weights of the original."

    def __call__(self, model, case, seed):
        return edited(model, case, lambda student: copy(student, case.original.state_dict()))
"""
GROUPS = {"Reads": "expunge.methods", "Measures": "expunge.methods", "Restores": "expunge.attacks"}
FIRST: Table = {"name": "weight_attenuation", "epochs": 1}
SECOND: Table = {"name": "finetune", "epochs": 1, "after": "weight_attenuation"}
LAST = {
    "after one": [FIRST, {"name": "reads", "label": "last", "after": "weight_attenuation"}],
    "after two": [FIRST, SECOND, {"name": "reads", "label": "last", "after": "finetune"}],
    "in the middle": [
        FIRST,
        {"name": "reads", "after": "weight_attenuation"},
        {"name": "finetune", "label": "last", "budget": 1, "after": "reads"},
    ],
    "its statistics": [FIRST, {"name": "measures", "label": "last", "after": "weight_attenuation"}],
    "after the original": [{"name": "reads", "label": "last"}],
}


def spec(methods: list[Table], **changes: Any) -> Table:
    return tiny(seeds=[0], method=methods, **{"audit": [{"name": "distance"}], "attack": [], **changes})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize("methods", LAST.values(), ids=LAST)
def test_a_method_of_a_spec_is_given_the_original(methods: list[Table], install: Any, tmp_path: Path) -> None:
    install(PARTS, GROUPS)
    finished(run(spec(methods), tmp_path / "runs"))
    models = tmp_path / "runs" / "tiny" / "models"
    original, last = (load_file(models / f"{model}-s0.safetensors") for model in ("original", "last"))
    assert same(original, last)
    if len(methods) > 1:
        assert not same(original, load_file(models / "weight_attenuation-s0.safetensors"))


def test_an_attack_is_given_the_original(install: Any, tmp_path: Path) -> None:
    install(PARTS, GROUPS)
    finished(run(spec([FIRST], attack=[{"name": "restores"}]), tmp_path / "runs"))
    models = tmp_path / "runs" / "tiny" / "models"
    attacked = load_file(models / "weight_attenuation-s0-restores.safetensors")
    assert same(load_file(models / "original-s0.safetensors"), attacked)


def test_a_shadow_is_given_the_original_of_its_own_number(install: Any, tmp_path: Path) -> None:
    install(PARTS, GROUPS)
    table = spec(LAST["after two"], audit=[{"name": "u_lira", "shadows": 4, "after_attack": True}])
    table["attack"] = [{"name": "restores"}]
    plan = Plan(parse(table, tmp_path))
    finished(run(table, tmp_path / "runs"))
    store = Store(tmp_path / "runs" / "cache")
    shadows = {(s.model, s.attack, s.part): store.path(s.key, WEIGHTS) for s in plan.stages if s.kind == "shadow"}
    for number in ("0", "1"):
        original = load_file(shadows["original", None, number])
        assert same(original, load_file(shadows["last", None, number]))
        assert same(original, load_file(shadows["weight_attenuation", "restores", number]))
    assert not same(load_file(shadows["last", None, "0"]), load_file(shadows["last", None, "1"]))


def test_keys_depend_on_the_original(tmp_path: Path) -> None:
    stages = [s for s in Plan(parse(spec([FIRST, SECOND]), tmp_path)).stages if s.kind in ("original", "unlearn")]
    original, *unlearned = stages
    assert [stage.inputs["original"] for stage in unlearned] == [original.key] * 2
    assert [stage.inputs["model"] for stage in unlearned] == [original.key, unlearned[0].key]


@pytest.mark.parametrize("names", [["reads"], ["finetune", "reads"]], ids=["after one", "after two"])
def test_a_method_of_a_notebook_is_given_the_original(names: list[str], install: Any) -> None:
    install(PARTS, GROUPS)
    setting = every_setting()[0]
    problem, model = setting.problem, setting.model()
    sets = {"forget": problem.forget, "retain": problem.retain, "test": problem.test}
    pairs = {name: (problem.data.inputs[ids], problem.data.targets[ids]) for name, ids in sets.items()}
    case = expunge.case(model, **pairs)
    done = expunge.unlearn(case, "weight_attenuation", epochs=1)
    assert difference(done.model, model)
    for name in names:
        done = expunge.unlearn(case, name, after=done)
    assert not difference(done.model, model)
    # An audit runs the methods again, on shadows, or loads what they returned; the record has the original as input.
    expunge.audit(done, case, attacks=[], audits=["distance"])


# --- Each method: which model it measures from or learns from --------------------------------------------------------

BRIEF: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2}
FROM_THE_ORIGINAL = [
    WeightDistanceReg(**BRIEF),
    ConnectivityBreaking(**BRIEF),
    SCRUB(**BRIEF, forget_epochs=1),
    BadTeacher(**BRIEF),
    DELETE(**BRIEF),
    NPO(**BRIEF),
    NPO(**BRIEF, retain="kl"),
    CircuitBreakers(**BRIEF),
    RandomRelabel(**BRIEF, retain="kl"),
    SalUn(**BRIEF, retain="kl"),
    NegGradPlus(**BRIEF, retain="kl"),
    NegGradPlus(**BRIEF, retain="kl", alternate=True),
]
FROM_THE_INPUT = [
    NoisyDistillation(epochs=1),
    TaskNegation(epochs=1),
    TAR(outer_steps=1, copies=1, inner_steps=1),
    SalUn(**BRIEF),
    REM(epochs=1, flushes=1),
]


def name_of(method: Method) -> str:
    extra = [str(value) for value in (getattr(method, "retain", "ce"),) if value != "ce"]
    return "-".join([type(method).__name__, *extra, *(["alternate"] if getattr(method, "alternate", False) else [])])


@pytest.fixture(scope="module")
def models() -> tuple[Problem, nn.Module, nn.Module]:
    """A problem, an untrained model in the place of the original, and a trained one to start from."""
    setting = every_setting()[0]
    return setting.problem, setting.recipe().build(1).eval(), setting.model()


@pytest.mark.parametrize("method", FROM_THE_ORIGINAL, ids=name_of)
def test_it_reads_the_original(method: Method, models: tuple[Problem, nn.Module, nn.Module]) -> None:
    problem, original, start = models
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    after = method(start, problem, None, 0, original=original).model
    assert difference(after, method(start, problem, None, 0).model)
    assert same(before, original.state_dict())


def test_potion_searches_until_enough_of_what_the_original_knew_is_gone(
    models: tuple[Problem, nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, original, start = models
    knows = {id(original): 1.0, id(start): 0.1}
    asked: list[int] = []

    def known(model: nn.Module, *_: Any) -> float:
        asked.append(id(model))
        return knows.get(id(model), 0.6)

    monkeypatch.setattr("expunge.methods.potion.known_share", known)
    method = Potion(tries=5, left=0.5)
    # Of three classes: 1/6 + 1/2 is left of the original's, which 0.6 is below at once; 1/6 + 1/20 of the input's.
    method(start, problem, None, 0, original=original)
    assert len(asked) == 2 and asked[0] == id(original)
    asked.clear()
    method(start, problem, None, 0)
    assert len(asked) == 6 and asked[0] == id(start)


@pytest.mark.parametrize("method", FROM_THE_INPUT, ids=name_of)
def test_it_reads_its_input_only(method: Method, models: tuple[Problem, nn.Module, nn.Module]) -> None:
    problem, original, start = models
    after = method(start, problem, None, 0, original=original).model
    assert not difference(after, method(start, problem, None, 0).model)


@pytest.mark.parametrize("method", [WeightDistanceReg(), ConnectivityBreaking()], ids=name_of)
def test_an_original_of_another_shape_is_refused(method: Method, models: tuple[Problem, nn.Module, nn.Module]) -> None:
    problem, _, start = models
    with pytest.raises(SpecError, match="same shape in the original") as caught:
        method(start, problem, None, 0, original=nn.Linear(3, 3))
    assert caught.value.remedy


def test_the_weights_move_away_from_the_original(models: tuple[Problem, nn.Module, nn.Module]) -> None:
    """SGD without cross-entropy's share: the first step is along (theta - theta0), away from the original."""
    problem, original, start = models
    method = WeightDistanceReg(epochs=1, batch_size=1000, optimizer="sgd", learning_rate=1e-2, alpha=1e6)
    after = method(start, problem, None, 0, original=original).model
    vectors = [nn.utils.parameters_to_vector(model.parameters()).double() for model in (after, start, original)]
    moved, away = vectors[0] - vectors[1], vectors[1] - vectors[2]
    assert torch.nn.functional.cosine_similarity(moved, away, dim=0) > 0.9999


def test_without_a_chain_the_input_is_the_original(models: tuple[Problem, nn.Module, nn.Module]) -> None:
    problem, _, start = models
    for method in FROM_THE_ORIGINAL:
        first, second = (method(start, problem, None, 0, original=o).model for o in (None, copy.deepcopy(start)))
        assert checkpoint.dump(first) == checkpoint.dump(second)
