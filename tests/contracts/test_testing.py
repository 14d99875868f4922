"""Every contract check fails on a part that breaks just this contract: none of them is vacuous."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from _wrong_parts import WRONG_AUGMENTATIONS, WRONG_DIAGNOSTICS, WRONG_OBJECTIVES, Counting
from torch import Tensor, nn

from expunge import testing
from expunge.attacks.relearn import Relearn
from expunge.audits.performance import Performance
from expunge.base.errors import MissingError, SpecError
from expunge.blocks.tied_dropout import TiedLayer
from expunge.core.case import Attacked, Case, Cost, Meter, Recipe, Unlearned, copy_for_training
from expunge.core.contracts import Architecture, Augmentation, Block, Diagnostic, Source, Task
from expunge.core.data import Data
from expunge.core.decisions import kl, loss
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import frozen_copy
from expunge.core.objective import Objective
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.evidence.scores import Scores
from expunge.methods.finetune import Finetune
from expunge.methods.retrain import Retrain
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.objectives.classification import Classification
from expunge.objectives.regression import Regression
from expunge.tasks.label_swap import LabelSwap
from expunge.tasks.planted_text import PlantedText

_calls = itertools.count(1)
"""What no seed controls."""

# --- Methods ---------------------------------------------------------------------------------------------------------


class Step(Method):
    """A right method, in one step of a loop of its own; the wrong ones change one thing."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        problem, ids = job.problem, job.problem.retain
        if job.meter.affords(len(ids)):
            batch = problem.data.batch(ids)
            value = problem.objective.loss(student, batch)
            named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
            gradients = torch.autograd.grad(value, [p for _, p in named])
            job.meter.charge(len(ids))
            with torch.no_grad():
                for (_, parameter), gradient in zip(named, gradients, strict=True):
                    parameter -= 0.01 * gradient
        return student


def noise(model: nn.Module, scale: float = 0.01, generator: torch.Generator | None = None) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return model


class ChangesInput(Step):
    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        return super().__call__(model, *rest)


class ChangesOriginal(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        with torch.no_grad():
            next(job.original.parameters()).mul_(1.5)
        return super().apply(student, job)


class ChangesInputBuffer(Step):
    def __call__(self, model: nn.Module, problem: Problem, *rest: Any) -> Unlearned:
        # As a teacher made of the input and left in training mode would: batch norm learns.
        model.train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            problem.objective.decisions(model, problem.data.batch(problem.retain))
        model.eval()
        return super().__call__(model, problem, *rest)


class ChangesInputMode(Step):
    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        done = super().__call__(model, *rest)
        model.train()
        return done


class LeavesGradients(Step):
    def __call__(self, model: nn.Module, problem: Problem, *rest: Any) -> Unlearned:
        loss(problem.objective.decisions(model, problem.data.batch(problem.retain))).backward()
        done = super().__call__(model, problem, *rest)
        return replace(done, cost=Cost(10**6, 0.0))


class FreezesInput(Step):
    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        done = super().__call__(model, *rest)
        model.requires_grad_(False)
        return done


class ChangesData(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        job.problem.data.targets[job.problem.forget] = 0
        return super().apply(student, job)


class DrawsGlobally(Step):
    def __call__(self, model: nn.Module, problem: Problem, recipe: Any, seed: int, budget: int | None) -> Unlearned:
        torch.manual_seed(seed)
        return super().__call__(noise(copy.deepcopy(model)), problem, recipe, seed, budget)


class DrawsFromNumpy(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        np.random.shuffle(np.arange(3))
        return super().apply(student, job)


class DrawsFromPython(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        random.random()
        return super().apply(student, job)


class Drifts(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        with torch.no_grad():
            next(p for p in student.parameters() if p.requires_grad).add_(1e-3 * next(_calls))
        return super().apply(student, job)


class DependsOnGlobalState(Step):
    """Reads the global state and puts it back: only two runs from different states show it."""

    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        with torch.random.fork_rng(devices=[]):
            model = noise(copy.deepcopy(model))
        return super().__call__(model, *rest)


class Remembers(Step):
    kept: ClassVar[dict[type, Unlearned]] = {}

    def __call__(self, model: nn.Module, problem: Problem, recipe: Any, seed: int, budget: int | None) -> Unlearned:
        done = super().__call__(model, problem, recipe, seed, budget)
        first = self.kept.setdefault(type(model), done)
        return first if budget is None else done


class Distils(Step):
    """A right method with a teacher: the output on the forget set moves towards the teacher's, shuffled."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})

    def teacher(self, student: nn.Module) -> nn.Module:
        return frozen_copy(student)

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        problem, teacher = job.problem, self.teacher(student)
        batch = problem.data.batch(problem.forget)
        student = super().apply(student, job)
        if not job.meter.affords(batch.size):
            return student
        logits = problem.objective.decisions(student, batch).logits
        with torch.no_grad():
            wanted = problem.objective.decisions(teacher, batch).logits.roll(1, 0)
        parameters = [p for p in student.parameters() if p.requires_grad]
        found = torch.autograd.grad(kl(wanted, logits), parameters)
        job.meter.charge(batch.size)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter -= 0.01 * gradient
        return student


class ShallowTeacher(Distils):
    def teacher(self, student: nn.Module) -> nn.Module:
        return copy.copy(student)


class HalfSharedTeacher(Distils):
    def teacher(self, student: nn.Module) -> nn.Module:
        teacher = frozen_copy(student)
        name = next(name for name, _ in student.named_children())
        setattr(teacher, name, getattr(student, name))
        return teacher


class AliasedTeacher(Distils):
    """Modules of its own, parameters of its own, and still the student's memory."""

    def teacher(self, student: nn.Module) -> nn.Module:
        teacher = copy.deepcopy(student)
        for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.data = theirs.data
        return teacher


class IgnoresBudget(Step):
    def __call__(self, model: nn.Module, problem: Problem, recipe: Any, seed: int, budget: int | None) -> Unlearned:
        return super().__call__(model, problem, recipe, seed, None)


class HidesOverrun(Step):
    """Charges no more than it may, computes more."""

    def __call__(self, model: nn.Module, problem: Problem, recipe: Any, seed: int, budget: int | None) -> Unlearned:
        done = super().__call__(model, problem, recipe, seed, None)
        return done if budget is None else replace(done, cost=Cost(min(budget, done.cost.gradients), 0.0))


class ChargesNothing(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return super().apply(student, replace(job, meter=Meter()))


class ChangesFrozen(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return noise(super().apply(student, job), 0.1, job.generator("noise"))


class Unfreezes(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return super().apply(student, job).requires_grad_(True)


class FreezesAll(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return super().apply(student, job).requires_grad_(False)


class Unties(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        student = super().apply(student, job)
        for module in student.modules():
            if isinstance(module, nn.Linear):
                flag = module.weight.requires_grad
                module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=flag)
        return student


class ReturnsInput(Step):
    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        return replace(super().__call__(model, *rest), model=model)


class ReturnsView(Step):
    """A module of its own around the input's memory."""

    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        return replace(super().__call__(model, *rest), model=copy.copy(model))


class Diverges(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        with torch.no_grad():
            next(student.parameters())[0] = torch.nan
        return student


class LeavesTrainMode(Step):
    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        done = super().__call__(model, *rest)
        done.model.train()
        return done


class LeavesPartInTrainMode(Step):
    def __call__(self, model: nn.Module, *rest: Any) -> Unlearned:
        done = super().__call__(model, *rest)
        next(done.model.children()).train()
        return done


class CastsToSingle(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return super().apply(student, job).float()


class Wraps(Step):
    """Same parameters by name and value, but what makes it another model is stored nowhere."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        student = super().apply(student, job)
        student.register_forward_hook(lambda module, args, output: -output)
        return student


class Nests(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return nn.Sequential(super().apply(student, job))


class Renames(Retrain):
    """A model that the recipe built, inside another: no run could read it again."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return nn.Sequential(super().apply(student, job))


class UsesRecipe(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        return job.recipe.fit(student, job.problem.data, job.problem.retain, job.seed, job.meter)  # type: ignore[union-attr]


class OnlyClasses(Step):
    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        assert isinstance(job.problem.objective, Classification)
        return super().apply(student, job)


class RunsAnyway(Step):
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    def unmet(self, problem: Problem, recipe: Recipe | None, model: nn.Module) -> list[str]:
        return []


class FailsWithoutRecipe(UsesRecipe):
    needs: ClassVar[frozenset[str]] = frozenset({"recipe"})

    def unmet(self, problem: Problem, recipe: Recipe | None, model: nn.Module) -> list[str]:
        return []


class NeedsTheImpossible(Step):
    needs: ClassVar[frozenset[str]] = frozenset({"clairvoyance"})


class RefusesAll(Step):
    def check_model(self, model: nn.Module) -> None:
        raise MissingError("not this one")


class ReturnsModule(Step):
    def __call__(self, *arguments: Any) -> Any:
        return super().__call__(*arguments).model


@dataclass(frozen=True)
class HoldsCode(Step):
    function: Any = len


class RunsWithoutItsBlock(Step):
    blocks: ClassVar[tuple[type[nn.Module], ...]] = (TiedLayer,)

    def __call__(self, model: nn.Module, problem: Problem, recipe: Any, seed: int, *_: Any) -> Unlearned:
        job = Job(problem, recipe, seed, Meter(), torch.device("cpu"), model)
        return Unlearned(self.apply(copy_for_training(model), job).eval(), "", Cost(0, 0.0))


class WorksOnNoBlockHere(Step):
    blocks: ClassVar[tuple[type[nn.Module], ...]] = (nn.Bilinear,)


WRONG_METHODS = {
    RunsWithoutItsBlock: "blocks",
    WorksOnNoBlockHere: "blocks",
    ChangesInput: "the input model is unchanged",
    ChangesOriginal: "the input model is unchanged",
    ChangesInputBuffer: "the input model is unchanged",
    ChangesInputMode: "the input model is unchanged",
    LeavesGradients: "the input model is unchanged",
    FreezesInput: "the input model is unchanged",
    ChangesData: "the data are unchanged",
    DrawsGlobally: "global randomness is untouched",
    Drifts: "deterministic",
    DependsOnGlobalState: "deterministic",
    Remembers: "a new model each time",
    ShallowTeacher: "a teacher of its own",
    HalfSharedTeacher: "a teacher of its own",
    AliasedTeacher: "a teacher of its own",
    IgnoresBudget: "the budget is an upper bound",
    HidesOverrun: "the budget is an upper bound",
    ChargesNothing: "costs are counted",
    ChangesFrozen: "frozen stays frozen",
    Unfreezes: "frozen stays frozen",
    FreezesAll: "frozen stays frozen",
    Unties: "ties are kept",
    ReturnsInput: "a model of its own",
    ReturnsView: "a model of its own",
    Diverges: "finite",
    LeavesTrainMode: "evaluation mode",
    LeavesPartInTrainMode: "evaluation mode",
    CastsToSingle: "device and dtype are kept",
    Wraps: "can be stored",
    Nests: "the same parameters",
    Renames: "ties are kept",
    UsesRecipe: "runs",
    OnlyClasses: "runs",
    RunsAnyway: "needs",
    FailsWithoutRecipe: "needs",
    NeedsTheImpossible: "needs",
    RefusesAll: "works on some model",
    ReturnsModule: "returns Unlearned",
    HoldsCode: "settings can be stored",
}


@pytest.mark.parametrize("right", [Step(), Distils(), Finetune(epochs=2, optimizer="sgd", learning_rate=1e-2)])
def test_a_right_method_passes(right: Method) -> None:
    testing.check_method(right)


@pytest.mark.parametrize("wrong", WRONG_METHODS, ids=lambda wrong: wrong.__name__)
def test_a_wrong_method_is_caught(wrong: type[Method]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_method(wrong())
    assert caught.value.contract == WRONG_METHODS[wrong], str(caught.value)


def test_a_broken_contract_says_what_to_do() -> None:
    with pytest.raises(AssertionError) as caught:
        testing.check_method(ShallowTeacher())
    message = str(caught.value)
    assert "ShallowTeacher" in message and "a plain classifier" in message and "frozen_copy" in message
    assert "'first.weight' and 7 more" in message


@pytest.mark.parametrize("kind", [DrawsFromNumpy, DrawsFromPython])
def test_a_method_may_draw_from_global_state(kind: type[Step]) -> None:
    """Its call seeds NumPy's and Python's generators and puts them back."""
    testing.check_method(kind())


def test_checks_leave_the_global_random_state_alone() -> None:
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    testing.check_method(Step())
    with pytest.raises(testing.ContractError):
        testing.check_method(DrawsGlobally())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1]) and random.getstate() == states[2]


# --- Attacks ---------------------------------------------------------------------------------------------------------


class Quick(Relearn):
    """A right attack; the wrong ones change one thing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"k": 1, "epochs": 2, "points": 4, "batch_size": 16, "learning_rate": 1e-2} | settings)


class TrainsOnHeldOut(Quick):
    def training_ids(self, problem: Problem) -> Tensor:
        return torch.cat([problem.retain, problem.unexposed[:1]])


class TrainsOnRelatives(Quick):
    """Retained examples of a held-out example's group: on the classifier there are three."""

    def training_ids(self, problem: Problem) -> Tensor:
        return torch.cat([problem.retain, problem.exposed[:1]])


class LearnsStatistics(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        student = copy_for_training(model)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            case.problem.objective.decisions(student, case.problem.data.batch(case.problem.unexposed))
        return super().__call__(model, case, seed)


class AttacksInput(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        return super().__call__(model, case, seed)


class AttacksAtRandom(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        return super().__call__(model, case, seed + next(_calls))


class AttackDrawsGlobally(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        torch.randn(1)
        return super().__call__(model, case, seed)


class CurveTooShort(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        done = super().__call__(model, case, seed)
        return replace(done, curve=replace(done.curve, values=done.curve.values[1:]))


class CurveOverOne(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        done = super().__call__(model, case, seed)
        return replace(done, curve=replace(done.curve, values=done.curve.values + 1))


class CurveBackwards(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        done = super().__call__(model, case, seed)
        return replace(done, curve=replace(done.curve, steps=done.curve.steps[::-1].copy()))


class CurveOfExposed(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        done = super().__call__(model, case, seed)
        ids = case.problem.forget[: len(done.curve.ids)].numpy()
        return replace(done, curve=replace(done.curve, ids=ids))


class CurveFromElsewhere(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        done = super().__call__(model, case, seed)
        values = done.curve.values.copy()
        values[0] = 1 - values[0]
        return replace(done, curve=replace(done.curve, values=values))


class NotThePeak(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        done = super().__call__(model, case, seed)
        return replace(done, model=noise(done.model, 3.0, torch.Generator().manual_seed(0)))


class AttackedInTrainMode(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        done = super().__call__(model, case, seed)
        return replace(done, model=done.model.train())


class AttackReturnsInput(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Attacked:
        return replace(super().__call__(model, case, seed), model=model)


class AttackReturnsModule(Quick):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> Any:
        return super().__call__(model, case, seed).model


WRONG_ATTACKS = {
    TrainsOnHeldOut: "held-out examples are not trained on",
    TrainsOnRelatives: "held-out examples are not trained on",
    LearnsStatistics: "held-out examples are seen in evaluation mode",
    AttacksInput: "the input model is unchanged",
    AttacksAtRandom: "deterministic",
    AttackDrawsGlobally: "global randomness is untouched",
    CurveTooShort: "shape of the curve",
    CurveOverOne: "values of the curve",
    CurveBackwards: "steps of the curve",
    CurveOfExposed: "ids of the curve",
    CurveFromElsewhere: "the first point can be reproduced",
    NotThePeak: "the peak can be reproduced",
    AttackedInTrainMode: "evaluation mode",
    AttackReturnsInput: "a model of its own",
    AttackReturnsModule: "returns Attacked",
}


def test_a_right_attack_passes() -> None:
    testing.check_attack(Quick())


@pytest.mark.parametrize("wrong", WRONG_ATTACKS, ids=lambda wrong: wrong.__name__)
def test_a_wrong_attack_is_caught(wrong: type[Quick]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_attack(wrong())
    assert caught.value.contract == WRONG_ATTACKS[wrong], str(caught.value)


# --- Audits ----------------------------------------------------------------------------------------------------------


class AuditWrites(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return super().__call__(model, case, seed)


class AuditWritesOriginal(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        with torch.no_grad():
            next(case.original.parameters()).add_(1e-3)
        return super().__call__(model, case, seed)


class AuditLosesMode(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        return super().__call__(model.eval(), case, seed)


class AuditDraws(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        torch.rand(1)
        return super().__call__(model, case, seed)


def changed(found: list[Scores], **changes: Any) -> list[Scores]:
    return [replace(found[0], **changes), *found[1:]]


class AuditAtRandom(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        found = super().__call__(model, case, seed)
        return changed(found, values=found[0].values + next(_calls))


class AuditOfExposed(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        found, ids = super().__call__(model, case, seed), case.problem.forget
        ids = ids[: found[0].ids.size]
        return changed(found, ids=ids.numpy(), group=case.problem.data.group_of(ids).numpy())


class AuditRefusesAll(Performance):
    def check_model(self, model: nn.Module) -> None:
        raise MissingError("not this one")


class AuditTwice(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        found = super().__call__(model, case, seed)
        ids = np.full_like(found[0].ids, found[0].ids[0])
        return changed(found, ids=ids, group=case.problem.data.group_of(torch.from_numpy(ids)).numpy())


class AuditNotFinite(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        found = super().__call__(model, case, seed)
        return changed(found, values=found[0].values / 0 if found[0].values.any() else found[0].values + np.inf)


class AuditWithoutGroups(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        return changed(super().__call__(model, case, seed), group=None)


class AuditOfChosen(Performance):
    """Scores the examples that this very model finds hard."""

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        found = super().__call__(model, case, seed)
        first = round(float(next(model.parameters()).detach().double().abs().sum()) * 1e6) % 2
        one = slice(first, first + 2)
        groups = case.problem.data.group_of(torch.from_numpy(found[0].ids[one].copy())).numpy()
        base = None if found[0].baseline is None else found[0].baseline[one]
        facts: dict[str, Any] = {"group": groups, "baseline": base, "target": None, "answer": None}
        return changed(found, values=found[0].values[one], ids=found[0].ids[one], **facts)


class AuditOfNothing(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        return []


class AuditSameKey(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        found = super().__call__(model, case, seed)
        return [*found, found[0]]


class AuditCannotTokens(Performance):
    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        assert case.problem.data.has_classes
        return super().__call__(model, case, seed)


WRONG_AUDITS = {
    AuditWrites: "the input model is unchanged",
    AuditWritesOriginal: "the input model is unchanged",
    AuditLosesMode: "the input model is unchanged",
    AuditDraws: "global randomness is untouched",
    AuditAtRandom: "deterministic",
    AuditOfExposed: "ids belong to the split",
    AuditTwice: "each example once",
    AuditRefusesAll: "works on some model",
    AuditNotFinite: "finite",
    AuditWithoutGroups: "groups are passed on",
    AuditOfChosen: "the same examples for every model",
    AuditOfNothing: "returns scores",
    AuditSameKey: "one entry per metric and split",
    AuditCannotTokens: "runs",
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("wrong", WRONG_AUDITS, ids=lambda wrong: wrong.__name__)
def test_a_wrong_audit_is_caught(wrong: type[Performance]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_audit(wrong())
    assert caught.value.contract == WRONG_AUDITS[wrong], str(caught.value)


# --- Tasks -----------------------------------------------------------------------------------------------------------


class TaskWrites(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        data.targets[0] = (data.targets[0] + 1) % 10
        return super().__call__(data, seed, measured)


class TaskAtRandom(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        return super().__call__(data, seed + next(_calls), measured)


class TaskMeasuresAtRandom(LabelSwap):
    def measure(self, data: Data, recipe: Recipe, seed: int) -> Mapping[str, Tensor]:
        return {"shift": torch.tensor(next(_calls))}

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        return super().__call__(data, seed + int(measured["shift"]), measured)


class TaskDraws(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        torch.rand(1)
        return super().__call__(data, seed, measured)


class Unchecked(Problem):
    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", self.data.objective)


class TaskOverlaps(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        problem = super().__call__(data, seed, measured)
        return Unchecked(problem.data, problem.forget, data.train, data.test)


class TaskLosesExamples(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        problem = super().__call__(data, seed, measured)
        return replace(problem, retain=problem.retain[1:])


class TaskHoldsOutTraining(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        problem = super().__call__(data, seed, measured)
        return replace(problem, holdout=problem.retain[:3])


class TaskHoldsOutTest(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        problem = super().__call__(data, seed, measured)
        return replace(problem, holdout=problem.test[:3])


class TaskCorruptsTest(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        problem = super().__call__(data, seed, measured)
        return replace(problem, corrupted=problem.test[:3])


class Leaky(Problem):
    @property
    def exposed(self) -> Tensor:
        return self.forget[:5]


class TaskSplitsItself(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        problem = super().__call__(data, seed, measured)
        return Leaky(problem.data, problem.forget, problem.retain, problem.test)


class PlantsUngrouped(PlantedText):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        problem = super().__call__(data, seed, measured)
        return replace(problem, data=replace(problem.data, groups=None))


class RefusesAll(LabelSwap):
    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        raise SpecError("nothing is good enough")


WRONG_TASKS = {
    TaskWrites: "the data are unchanged",
    TaskAtRandom: "deterministic",
    TaskMeasuresAtRandom: "deterministic",
    TaskDraws: "global randomness is untouched",
    TaskOverlaps: "forget and retain are disjoint",
    TaskLosesExamples: "forget and retain cover the training set",
    TaskHoldsOutTraining: "nobody trains on the holdout set",
    TaskHoldsOutTest: "hold-out and test set are disjoint",
    TaskCorruptsTest: "corruption is trained on",
    TaskSplitsItself: "exposed and held-out split the forget set",
    PlantsUngrouped: "copies stay together",
    RefusesAll: "some data carry it",
}


@pytest.mark.parametrize("wrong", WRONG_TASKS, ids=lambda wrong: wrong.__name__)
def test_a_wrong_task_is_caught(wrong: type[Task]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_task(wrong(count=20))
    assert caught.value.contract == WRONG_TASKS[wrong], str(caught.value)


# --- Models ----------------------------------------------------------------------------------------------------------


class ModelTooNarrow(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        return super().__call__(replace(data, targets=data.targets % 5, labels=data.labels[:5]))


class ModelAtRandom(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        torch.manual_seed(next(_calls))
        return super().__call__(data)


class ModelAlwaysTheSame(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        torch.manual_seed(0)
        return super().__call__(data)


class ModelDrawsFromNumpy(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        np.random.rand()
        return super().__call__(data)


class ModelWithIdlePart(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        model = super().__call__(data)
        model.register_parameter("idle", nn.Parameter(torch.zeros(1)))
        return model


class ModelForgetsBuffer(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        model = super().__call__(data)
        model.register_buffer("mask", torch.rand(3), persistent=False)
        return model


class Single(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.float())


class ModelOnlySingle(MLP):
    def __call__(self, data: Data) -> Any:
        return Single(super().__call__(data))


class ModelRefusesAll(MLP):
    def __call__(self, data: Data) -> Any:
        raise SpecError("nothing is good enough")


class Peeks(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.inner(tokens)
        return logits + logits.mean(1, keepdim=True)


class ModelPeeks(Architecture):
    def __call__(self, data: Data) -> nn.Module:
        return Peeks(GPT(width=8, layers=1, heads=2)(data))


class ModelFailsOnTokens(MLP):
    def __call__(self, data: Data) -> nn.Sequential:
        if not data.has_tokens:
            return super().__call__(data)
        return super().__call__(replace(data, objective=None, labels=(), targets=torch.zeros(len(data)).long()))


WRONG_MODELS = {
    ModelTooNarrow: "one output per label",
    ModelAtRandom: "the seed decides the weights",
    ModelAlwaysTheSame: "the seed decides the weights",
    ModelDrawsFromNumpy: "global randomness is untouched",
    ModelWithIdlePart: "every parameter is used",
    ModelForgetsBuffer: "weights can be stored",
    ModelOnlySingle: "runs",
    ModelRefusesAll: "some data fit",
    ModelPeeks: "no later token is seen",
    ModelFailsOnTokens: "runs",
}


@pytest.mark.parametrize("wrong", WRONG_MODELS, ids=lambda wrong: wrong.__name__)
def test_a_wrong_model_is_caught(wrong: type[Architecture]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_model(wrong())
    assert caught.value.contract == WRONG_MODELS[wrong], str(caught.value)


# --- Blocks ----------------------------------------------------------------------------------------------------------


class Factor(nn.Module):
    """A right module; the wrong ones change one thing."""

    def __init__(self, value: float = 0.9) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.value * hidden


@dataclass(frozen=True)
class Right(Block):
    def __call__(self, model: nn.Module, path: str) -> nn.Module:
        return Factor()


def test_a_right_block_is_accepted() -> None:
    testing.check_block(Right())


class BlockAtRandom(Right):
    def __call__(self, *_: Any) -> nn.Module:
        return Factor(1.0 + next(_calls))


class BlockRefusesAll(Right):
    def __call__(self, *_: Any) -> nn.Module:
        raise SpecError("nothing is good enough")


class BlockRenames(Right):
    def __call__(self, model: Any, path: str) -> nn.Module:
        model[0] = nn.Sequential(model[0])
        return Factor()


class BlockChangesWeights(Right):
    def __call__(self, model: Any, path: str) -> nn.Module:
        with torch.no_grad():
            model[0].weight.mul_(2)
        return Factor()


def block_of(call: Any, **facts: Any) -> type[Block]:
    """A block whose module computes something else."""
    module = type("Module", (Factor,), {"forward": call})
    return type("Wrong", (Right,), {"__call__": lambda *_: module(), **facts})


BlockCuts = block_of(lambda self, hidden: self.value * hidden[:, :, None])
BlockIsNoNumber = block_of(lambda self, hidden: self.value * hidden * float("nan"))
BlockDetaches = block_of(lambda self, hidden: self.value * hidden.detach())
BlockIsIdle = block_of(lambda self, hidden: 0.5 * hidden)
BlockFails = block_of(lambda self, hidden: hidden.no_such_thing)
BlockPreservesNothing = block_of(lambda self, hidden: self.value * hidden, preserves=True)


class Uncopied(Factor):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


class BlockShared(Right):
    def __call__(self, *_: Any) -> nn.Module:
        return Uncopied()


class Unstored(Factor):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.rand(1) + 1, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.size * super().forward(hidden)


class BlockForgets(Right):
    def __call__(self, *_: Any) -> nn.Module:
        return Unstored()


WRONG_BLOCKS = {
    BlockAtRandom: "the seed decides the weights",
    BlockRefusesAll: "some model fits",
    BlockRenames: "names of weights stay",
    BlockChangesWeights: "weights of the model stay",
    BlockCuts: "the output keeps its shape",
    BlockIsNoNumber: "outputs are finite",
    BlockDetaches: "gradients flow",
    BlockIsIdle: "gradients flow",
    BlockFails: "runs",
    BlockPreservesNothing: "preserves",
    BlockShared: "copies are independent",
    BlockForgets: "weights can be stored",
}


@pytest.mark.parametrize("wrong", WRONG_BLOCKS, ids=WRONG_BLOCKS.values())
def test_a_wrong_block_is_caught(wrong: type[Block]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_block(wrong())
    assert caught.value.contract == WRONG_BLOCKS[wrong], str(caught.value)


# --- Data ------------------------------------------------------------------------------------------------------------


class DataAtRandom(Digits):
    def __call__(self) -> Data:
        data = super().__call__()
        return replace(data, inputs=data.inputs + next(_calls))


class DataDraws(Digits):
    def __call__(self) -> Data:
        torch.rand(1)
        return super().__call__()


class DataLeaks(Digits):
    def __call__(self) -> Data:
        data = super().__call__()
        return replace(data, test=data.train[:10])


class DataWithoutTest(Digits):
    def __call__(self) -> Data:
        data = super().__call__()
        return replace(data, test=data.test[:0])


class DataDouble(Digits):
    def __call__(self) -> Data:
        data = super().__call__()
        return replace(data, inputs=data.inputs.double())


class DataUntrainedClass(Digits):
    def __call__(self) -> Data:
        data = super().__call__()
        return replace(data, train=data.train[data.targets[data.train] != 3])


class DataWrongScores(Digits):
    def __call__(self) -> Data:
        data = super().__call__()
        return replace(data, cscore=torch.full((len(data),), 1.5, dtype=torch.float64))


class DataIsTensor(Digits):
    def __call__(self) -> Any:
        return super().__call__().inputs


WRONG_DATA = {
    DataAtRandom: "deterministic",
    DataDraws: "global randomness is untouched",
    DataLeaks: "training and test examples",
    DataWithoutTest: "training and test examples",
    DataDouble: "types",
    DataUntrainedClass: "every class is trained on",
    DataWrongScores: "C-scores are shares",
    DataIsTensor: "returns Data",
}


@pytest.mark.parametrize("wrong", WRONG_DATA, ids=lambda wrong: wrong.__name__)
def test_wrong_data_are_caught(wrong: type[Source]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_data(wrong())
    assert caught.value.contract == WRONG_DATA[wrong], str(caught.value)


# --- Diagnostics, objectives, augmentations --------------------------------------------------------------------------


def test_a_right_diagnostic_passes() -> None:
    testing.check_diagnostic(Counting())


@pytest.mark.parametrize("wrong", WRONG_DIAGNOSTICS, ids=lambda wrong: wrong.__name__)
def test_a_wrong_diagnostic_is_caught(wrong: type[Diagnostic]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_diagnostic(wrong())
    assert caught.value.contract == WRONG_DIAGNOSTICS[wrong], str(caught.value)


@pytest.mark.parametrize("wrong", WRONG_OBJECTIVES, ids=lambda wrong: wrong.__name__)
def test_a_wrong_objective_is_caught(wrong: type[Objective]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_objective(wrong())
    assert caught.value.contract == WRONG_OBJECTIVES[wrong], str(caught.value)


def test_an_objective_is_checked_on_data_of_the_callers_own() -> None:
    ids = torch.arange(6)
    data = Data(torch.randn(6, 2), torch.randn(6, 4), ids[:4], ids[4:])
    testing.check_objective(Regression(), data, nn.Linear(2, 4))
    with pytest.raises(testing.ContractError, match="some data fit"):
        testing.check_objective(Regression(), data, nn.Linear(2, 3))


@pytest.mark.parametrize("wrong", WRONG_AUGMENTATIONS, ids=lambda wrong: wrong.__name__)
def test_a_wrong_augmentation_is_caught(wrong: type[Augmentation]) -> None:
    with pytest.raises(testing.ContractError) as caught:
        testing.check_augmentation(wrong())
    assert caught.value.contract == WRONG_AUGMENTATIONS[wrong], str(caught.value)


def test_no_contract_is_without_a_part_that_breaks_it() -> None:
    """A new check needs a wrong part here: names of contracts in the source are those caught above."""
    import ast
    from pathlib import Path

    caught = {
        *WRONG_METHODS.values(),
        *WRONG_ATTACKS.values(),
        *WRONG_AUDITS.values(),
        *WRONG_TASKS.values(),
        *WRONG_MODELS.values(),
        *WRONG_DATA.values(),
        *WRONG_BLOCKS.values(),
        *WRONG_DIAGNOSTICS.values(),
        *WRONG_OBJECTIVES.values(),
        *WRONG_AUGMENTATIONS.values(),
    }
    sources = [file.read_text() for folder in testing.__path__ for file in Path(folder).glob("*.py")]
    named = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("fail", "ContractError"):
            contract = node.args[0 if node.func.id == "fail" else 1]
            if isinstance(contract, ast.Constant):
                named.add(contract.value)
    assert len(named) > 30 and named <= caught
