"""The plan of a notebook's case: the same stages as for a spec, made from the user's objects in memory.

The seeds of stages differ from those of a spec: all references belong to one case and differ by their number. Shadow
models draw the same random numbers as those of a spec with the same seed. So `u_lira` of one method gives the same
numbers as in a spec, if data and their order are the same. A chain of methods draws other numbers.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.api.recipe import FunctionRecipe
from expunge.base.inputs import signatures
from expunge.base.part import Part
from expunge.base.seeds import derive
from expunge.base.spec import Spec
from expunge.base.spec_tables import Entry
from expunge.base.user_code import code_files
from expunge.core import checkpoint
from expunge.core.case import Case, Unlearned
from expunge.core.data import Data
from expunge.core.modules import first_parameter
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.evidence.table import ORIGINAL
from expunge.pipeline.input_files import InputFiles, without_places
from expunge.pipeline.plan import Plan
from expunge.pipeline.resolved import described
from expunge.pipeline.seeds import StageSeeds
from expunge.pipeline.stage import Stage


@dataclass(frozen=True)
class InMemory(Part):
    """An object from the user, which replaces a part that a spec would name."""

    measures: ClassVar[bool] = False
    what: str = ""
    digest: str = ""


@dataclass(frozen=True)
class CaseSeeds(StageSeeds):
    """Seeds of the stages of a case."""

    seed: int

    def case(self, stage: Stage) -> int:
        return self.seed

    def train(self, stage: Stage) -> int:
        if stage.kind == "reference":
            return derive(self.seed, "reference", stage.seed)
        return derive(self._own(stage), "train")

    def unlearn(self, stage: Stage) -> int:
        return derive(self._own(stage), "unlearn", stage.model)

    def attack(self, stage: Stage) -> int:
        number = [] if stage.kind == "shadow" else [stage.seed]
        return derive(self._own(stage), "attack", stage.attack, *number)

    def audit(self, stage: Stage) -> int:
        return derive(self.seed, "audit", stage.part)

    def _own(self, stage: Stage) -> int:
        return derive(self.seed, "shadow", stage.part) if stage.kind == "shadow" else self.seed


@dataclass(frozen=True)
class CasePlan(Plan):
    """Attacks and audits of one unlearned model, `done`, and of `references` retrained models."""

    case: Case
    done: Unlearned
    run_attacks: dict[str, Any]
    run_audits: dict[str, Any]
    references: int
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Content addresses of data, model and training, if outputs are stored in a folder; see `api/addresses.py`."""
    elsewhere: Any = None
    """What other processes make this plan from, see `api/home.py`; `None` if it runs in this process only."""

    def __post_init__(self) -> None:
        _ = self.inputs  # before anything is computed, so that a later change is noticed

    @cached_property
    def source(self) -> Any:
        return InMemory("data", self.addresses.get("data", ""))

    @cached_property
    def architecture(self) -> Any:
        return InMemory("model", self.addresses.get("model", ""))

    @cached_property
    def training(self) -> Any:
        return InMemory("training", self.addresses.get("training", ""))

    @cached_property
    def task(self) -> Any:
        return InMemory("forget set")

    @cached_property
    def steps(self) -> dict[str, Unlearned]:
        """The result of each method of the chain, by its label."""
        return {step.method: step for step in chain(self.done)}

    @cached_property
    def methods(self) -> Any:
        return {label: step.part or InMemory(label) for label, step in self.steps.items()}

    @cached_property
    def attacks(self) -> Any:
        return self.run_attacks

    @cached_property
    def audits(self) -> Any:
        return self.run_audits

    @cached_property
    def diagnostics(self) -> Any:
        return {}

    @cached_property
    def data(self) -> Data:
        return self.case.problem.data

    def problem(self, seed: int, measured: dict[str, Tensor]) -> Problem:
        return self.case.problem

    @property
    def device(self) -> torch.device:
        """The device of the user's model."""
        return first_parameter(self.case.original).device

    @cached_property
    def inputs(self) -> InputFiles:
        """The user's code, if outputs are stored; data and models are in memory."""
        recipe, code = self.case.recipe, dict[str, list[Path]]()
        if self.addresses:
            parts = {**self.methods, **self.attacks, **self.audits}
            code = {label: part.code_files() for label, part in parts.items()}
        if self.addresses and isinstance(recipe, FunctionRecipe):
            code["recipe"] = [path for function in (recipe.make, recipe.train) for path in code_files(function)]
        return InputFiles({}, signatures(path for paths in code.values() for path in paths), code)

    @cached_property
    def monitors(self) -> Any:
        return {}

    @cached_property
    def augmentations(self) -> Any:
        return {}

    def recipe(self, data: Data, *, watched: bool = False) -> Any:
        return self.case.recipe

    @property
    def trains(self) -> bool:
        return self.case.recipe is not None

    @property
    def has_references(self) -> bool:
        return self.references > 0

    @property
    def models(self) -> list[str]:
        judged = {label for label in self.methods if label != self.done.method}
        return [model for model in super().models if model not in judged]

    def labels(self, kind: str, model: str, attack: str | None, part: str) -> Any:
        """Labels, because seeds depend on them; and a digest of the weights that a method returned."""
        weights = self.weights[model] if kind == "unlearn" else None
        return [self.case.seed, model, attack, part, weights]

    @cached_property
    def weights(self) -> dict[str, str]:
        """Content address of the weights that each method returned."""
        return {label: weights_digest(step.model) for label, step in self.steps.items()}

    @property
    def left_out(self) -> frozenset[str]:
        """A record of a notebook holds no weights: the user has the model."""
        return frozenset({"models"})

    @cached_property
    def own_digest(self) -> str:
        return weights_digest(self.case.original)

    def original(self, data: Data) -> nn.Module:
        return self.case.original

    @property
    def home(self) -> Any:
        return self.elsewhere or _Here(self)

    @property
    def seeds(self) -> CaseSeeds:
        return CaseSeeds(self, self.case.seed)

    def fresh(self, stage: Stage, data: Data) -> nn.Module:
        """A copy of the user's model or of a method's result; for models that are trained, a freshly built one."""
        own = {ORIGINAL: self.case.original} | {label: step.model for label, step in self.steps.items()}
        trained = stage.kind in ("reference", "shadow") and stage.model not in self.steps
        if stage.model in own and not trained:
            return copy.deepcopy(own[stage.model])
        with forked():
            module: nn.Module = self.case.recipe.build(0)  # type: ignore[union-attr]
        return module.to(self.device)

    def resolved(self) -> dict[str, Any]:
        """What is known about the run, in the form of a resolved spec."""
        problem = self.case.problem

        def tables(entries: tuple[Entry, ...], parts: dict[str, Any]) -> list[dict[str, Any]]:
            return [_table(entry, parts[entry.label]) for entry in entries]

        settings = {
            "name": self.spec.name,
            "seeds": list(self.spec.seeds),
            "threads": self.spec.threads,
            "device": self.device.type,
            "precision": self.spec.precision,
            "case_seed": self.case.seed,
            "data": {"name": "your data", "train": len(problem.train), "test": len(problem.test)},
            "objective": described(problem.objective),
            "model": {"name": type(self.case.original).__name__},
            "forget": {"name": "your forget set", "count": len(problem.forget)},
            "method": tables(self.spec.method, self.methods),
            "attack": tables(self.spec.attack, self.attacks),
            "audit": tables(self.spec.audit, self.audits),
        }
        without: dict[str, Any] = without_places(settings, Path.cwd())
        return without

    def versions(self) -> dict[str, dict[str, int]]:
        """Version of each method, attack and audit, by name."""
        spec = self.spec
        return {
            "method": {entry.name: self.methods[entry.label].version for entry in spec.method},
            "attack": {entry.name: self.attacks[entry.label].version for entry in spec.attack},
            "audit": {entry.name: self.audits[entry.label].version for entry in spec.audit},
        }


@dataclass(frozen=True, eq=False)
class _Here:
    """A plan that exists in this process only."""

    case_plan: CasePlan

    def plan(self) -> CasePlan:
        return self.case_plan


def chain(done: Unlearned) -> list[Unlearned]:
    """The results of the methods that lead to this one; this one is the last."""
    return [*(chain(done.after) if done.after else []), done]


def spec_of(
    done: Unlearned, references: int, attacks: tuple[Entry, ...], audits: tuple[Entry, ...], gallery: bool
) -> Spec:
    """The audit as a spec."""
    methods = tuple(
        Entry(
            step.method.removeprefix(f"{step.after.method}_") if step.after else step.method,
            step.method,
            budget=step.budget,
            adapter=step.adapter,
            after=step.after.method if step.after else None,
        )
        for step in chain(done)
    )
    yours = Entry("yours", "yours")
    return Spec(
        name=done.method,
        seeds=tuple(range(max(references, 1))),
        data=yours,
        model=yours,
        forget=yours,
        method=methods,
        attack=attacks,
        audit=audits,
        threads=torch.get_num_threads(),
        gallery=gallery,
    )


def weights_digest(model: nn.Module) -> str:
    """Content address of a model's weights."""
    return hashlib.sha256(checkpoint.dump(model)).hexdigest()


def _table(entry: Entry, part: Any) -> dict[str, Any]:
    settings = {} if isinstance(part, InMemory) else part.settings()
    label = entry.label if entry.label != entry.name else None
    extras = {"label": label, "budget": entry.budget, "after": entry.after, "adapter": entry.adapter}
    return {"name": entry.name, **settings, **{key: value for key, value in extras.items() if value is not None}}
