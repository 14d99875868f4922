"""Make the parts of a spec: each is made once, by name, and its settings are checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.inputs import digest
from expunge.base.part import Part
from expunge.base.reading import require_file
from expunge.base.seeds import derive
from expunge.base.spec import NONE, RETRAIN, Spec
from expunge.base.spec_tables import Entry
from expunge.blocks import Placed, with_blocks
from expunge.core import checkpoint
from expunge.core.adapter import Adapter, refuse_unadaptable
from expunge.core.case import Attacked, Unlearned
from expunge.core.contracts import Architecture, Attack, Audit, Augmentation, Block, Diagnostic, Monitor, Source, Task
from expunge.core.data import Data
from expunge.core.device import placed, resolve
from expunge.core.method import Method
from expunge.core.objective import Objective
from expunge.core.problem import Problem
from expunge.core.refusals import refuse_objective
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.pipeline.default_diagnostics import planned, with_plan
from expunge.pipeline.input_files import InputFiles
from expunge.pipeline.resolved import resolved, resolved_objective
from expunge.train.function_training import FunctionTraining
from expunge.train.training import TrainedRecipe, Training

CLASSES: dict[str, type[Part]] = {
    "data": Source,
    "objective": Objective,
    "augmentation": Augmentation,
    "model": Architecture,
    "block": Block,
    "task": Task,
    "method": Method,
    "attack": Attack,
    "audit": Audit,
    "diagnostic": Diagnostic,
    "monitor": Monitor,
}
"""Kind of part -> its base class."""
RETURNS: dict[str, Any] = {
    "data": Data,
    "augmentation": torch.Tensor,
    "model": nn.Module,
    "block": (nn.Module, type(None)),
    "task": Problem,
    "method": Unlearned,
    "attack": Attacked,
    "audit": (list, tuple),
    "diagnostic": dict,
    "monitor": object,
}
"""Kind of part -> what a plain function of the user's must return."""


@dataclass(frozen=True)
class Parts:
    """A spec and its parts."""

    spec: Spec

    def __post_init__(self) -> None:
        # All parts are made now, so that a bad setting is reported before anything is computed.
        _ = self.source, self.objective, self.augmentations, self.architecture, self.training, self.task
        _ = self.device, self.methods, self.attacks, self.diagnostics, self.monitors, self.inputs, self.audits
        _ = self.adapters

    def _build(self, kind: str, entry: Entry, where: str) -> Part:
        part = registry.build(kind, entry.name, entry.settings, where=where, folder=self.spec.folder)
        if isinstance(part, registry.FunctionPart) and kind != "objective":
            return replace(part, returns=RETURNS[kind])
        if not isinstance(part, CLASSES[kind]):
            function = ", or a function" if kind != "objective" else ""
            raise SpecError(
                f"{entry.name!r} is no {kind}",
                where=f"{where}.name",
                allowed=f"a registered name, a class derived from {CLASSES[kind].__name__}{function}",
            )
        return part

    @cached_property
    def source(self) -> Source:
        """The data set."""
        return cast(Source, self._build("data", self.spec.data, "data"))

    @cached_property
    def architecture(self) -> Architecture:
        """The model family; its models contain the spec's blocks."""
        blocks = [(self._build("block", e, f"model.block[{i}]"), e) for i, e in enumerate(self.spec.block)]
        placed = [Placed(block, entry.at, entry.name) for block, entry in blocks]
        return cast(Architecture, with_blocks(self._build("model", self.spec.model, "model"), placed))

    @cached_property
    def training(self) -> Training | FunctionTraining:
        """How models are trained: by the library's loop, or by a function named in the spec."""
        kind = FunctionTraining if "name" in self.spec.train else Training
        return kind.from_table(self.spec.train, where="train")

    @cached_property
    def adapters(self) -> dict[tuple[str, str], Adapter]:
        """What is trained instead of weights, by kind of part and label; `("train", "")` for originals and references.

        Raises:
            SpecError: A setting is bad, or the part trains nothing that an adapter could replace.
        """
        tables = [("train", "", "train", self.spec.adapter)]
        tables += [("method", e.label, f"method[{i}]", e.adapter) for i, e in enumerate(self.spec.method)]
        tables += [("attack", e.label, f"attack[{i}]", e.adapter) for i, e in enumerate(self.spec.attack)]
        made = {}
        for kind, label, where, table in tables:
            if table is not None:
                refuse_unadaptable(None if kind == "train" else self.part(kind, label), where)
                made[kind, label] = Adapter.from_table(table, where=f"{where}.adapter")
        return made

    @cached_property
    def task(self) -> Task:
        """What is to be forgotten."""
        return cast(Task, self._build("task", self.spec.forget, "forget"))

    @cached_property
    def methods(self) -> dict[str, Method]:
        """By label, in the order of the spec."""
        return {e.label: cast(Method, self._build("method", e, f"method[{i}]")) for i, e in enumerate(self.spec.method)}

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """By label, in the order of the spec."""
        return {e.label: cast(Attack, self._build("attack", e, f"attack[{i}]")) for i, e in enumerate(self.spec.attack)}

    @cached_property
    def audits(self) -> dict[str, Audit]:
        """By label: first the objective's own audits, then those of the spec."""
        always = self.data.objective.audits
        named = {entry.name for entry in self.spec.audit}
        added = [Entry(name, name) for name in always if name not in named]
        audits = {e.name: cast(Audit, self._build("audit", e, e.name)) for e in added} | self._named_audits
        for label, audit in audits.items():
            refuse_objective(audit.needs, self.data.objective, where=f"audit {label!r}")
        return audits

    @cached_property
    def _named_audits(self) -> dict[str, Audit]:
        """The audits of the spec, by label. They are made without the data."""
        return {e.label: cast(Audit, self._build("audit", e, f"audit[{i}]")) for i, e in enumerate(self.spec.audit)}

    @cached_property
    def inputs(self) -> InputFiles:
        """The files that the run reads, as they were before any of them was read."""
        parts: list[tuple[str, Part]] = [("data", self.source), ("model", self.architecture), ("forget", self.task)]
        parts += [("train", self.training)] + ([("objective", self.objective)] if self.objective else [])
        for kind in ("augmentation", "method", "attack", "diagnostic", "monitor"):
            parts += [(f"{kind} {label!r}", part) for label, part in getattr(self, f"{kind}s").items()]
        parts += [(f"audit {label!r}", part) for label, part in self._named_audits.items()]
        return InputFiles.of(parts, self.spec.weights, self.given_references)

    @cached_property
    def diagnostics(self) -> dict[str, Diagnostic]:
        """By label, in the order of the spec. Settings that are not given come from the first suitable method."""
        plan = planned(self.methods.values())
        entries = [replace(e, settings=with_plan(e.name, e.settings, plan)) for e in self.spec.diagnostic]
        return {
            e.label: cast(Diagnostic, self._build("diagnostic", e, f"diagnostic[{i}]")) for i, e in enumerate(entries)
        }

    @cached_property
    def monitors(self) -> dict[str, Monitor]:
        """By label, in the order of the spec."""
        return {
            e.label: cast(Monitor, self._build("monitor", e, f"monitor[{i}]")) for i, e in enumerate(self.spec.monitor)
        }

    def part(self, kind: str, label: str) -> Any:
        """The method, attack, audit or diagnostic with this label."""
        parts: dict[str, dict[str, Any]] = {
            "method": {**self.methods},
            "attack": {**self.attacks},
            "audit": {**self.audits},
            "diagnostic": {**self.diagnostics},
        }
        return parts[kind][label]

    def name_of(self, kind: str, label: str) -> str:
        """The registered name of the attack, audit or diagnostic with this label."""
        entries = {"attack": self.spec.attack, "audit": self.spec.audit, "diagnostic": self.spec.diagnostic}[kind]
        return next((entry.name for entry in entries if entry.label == label), label)

    @cached_property
    def data(self) -> Data:
        """The loaded data set, with the objective that judges models."""
        _ = self.inputs  # before the data are read, so that a later change is noticed
        data = self.source().judged_by(self.objective)
        return replace(data, augmentations=tuple(self.augmentations.values())) if self.augmentations else data

    @cached_property
    def augmentations(self) -> dict[str, Augmentation]:
        """By label, in the order in which they are applied."""
        entries = enumerate(self.spec.augmentation)
        return {e.label: cast(Augmentation, self._build("augmentation", e, f"augmentation[{i}]")) for i, e in entries}

    @cached_property
    def objective(self) -> Objective | None:
        """The spec's objective; `None` if it is inferred from the data."""
        entry = self.spec.objective
        return None if entry is None else cast(Objective, self._build("objective", entry, "objective"))

    def problem(self, seed: int, measured: dict[str, torch.Tensor]) -> Problem:
        """The problem of a seed. For a model of the user it is the same for all seeds."""
        return self.task(self.data, derive(self.task_seed(seed), "task"), measured)

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Numbers of retain and forget examples of the first seed's problem, as known before training.

        A task that needs statistics gives its setting `count`; without one, a tenth of the training set is assumed.
        """
        if not self.task.measures:
            problem = self.problem(self.spec.seeds[0], {})
            return len(problem.retain), len(problem.forget)
        train = len(self.data.train)
        forget = min(int(getattr(self.task, "count", train // 10)), train)
        return train - forget, forget

    def task_seed(self, seed: int) -> int:
        """The seed from which the problem of a run's seed is made."""
        return self.spec.seeds[0] if self.about_one_model else seed

    def recipe(self, data: Data, *, watched: bool = False) -> TrainedRecipe:
        """How models are trained on this view of the data; with the spec's monitors if `watched`."""
        return TrainedRecipe(
            self.architecture,
            self.training,
            data,
            monitors=self.monitors if watched else {},
            device=self.device,
            checkpointing=self.spec.checkpointing,
            adapter=self.adapters.get(("train", "")),
        )

    @property
    def trains(self) -> bool:
        """Whether models can be trained: references, and what methods and audits train anew."""
        return self.spec.references == RETRAIN

    @property
    def given_references(self) -> tuple[Path, ...]:
        """Files or folders of the user's own references, in the order of the seeds; empty if there are none."""
        return () if isinstance(self.spec.references, str) else tuple(map(Path, self.spec.references))

    @property
    def has_references(self) -> bool:
        """Whether the run has references, trained or given."""
        return self.spec.references != NONE

    @property
    def models(self) -> list[str]:
        """Labels of the models that are attacked, audited and shown, in order."""
        return [ORIGINAL, *([REFERENCE] if self.has_references else []), *self.methods]

    def labels(self, kind: str, model: str, attack: str | None, part: str) -> Any:
        """What a stage's key contains of its labels: nothing, because seeds do not depend on labels."""
        return None

    @property
    def left_out(self) -> frozenset[str]:
        """Folders that are not written into the record."""
        return frozenset()

    @cached_property
    def device(self) -> torch.device:
        """The device of the models.

        Raises:
            SpecError: There is no such device on this machine.
        """
        return resolve(self.spec.device)

    @property
    def about_one_model(self) -> bool:
        """Whether verdicts are about one model, the user's own or one that is trained, rather than about methods."""
        return self.gives_original or self.spec.one_original

    @property
    def gives_original(self) -> bool:
        """Whether the original is the user's own model; otherwise it is trained."""
        return self.own_digest is not None

    @cached_property
    def own_digest(self) -> str | None:
        """Content address of the user's own weights; `None` if originals are trained.

        Raises:
            SpecError: The weights cannot be read, or the model part has weights too.
        """
        own = self.architecture.original_digest() if isinstance(self.architecture, Architecture) else None
        if self.spec.weights is None or own is None:
            return own if self.spec.weights is None else _weights_digest(self.spec.weights)
        finding = f"{self.spec.model.name!r} has its own weights"
        raise SpecError(finding, where="model.weights", remedy="leave weights out, or name another model")

    def original(self, data: Data) -> nn.Module | None:
        """The user's own model; `None` if originals are trained.

        Raises:
            SpecError: The weights do not fit the model.
        """
        if self.spec.weights is not None:
            return checkpoint.load(self.recipe(data).build(0), Path(self.spec.weights), where="model.weights")
        own = self.architecture.original(data) if self.gives_original else None
        return None if own is None else placed(own, self.device)

    def resolved(self) -> dict[str, Any]:
        """All settings of the run, given or default, as plain data."""
        return resolved(self)

    def versions(self) -> dict[str, dict[str, int]]:
        """Version of every part, by the spec's table and the part's name."""
        spec = self.spec
        named: dict[str, list[tuple[str, Part]]] = {
            "data": [(spec.data.name, self.source)],
            "objective": [(str(resolved_objective(self)["name"]), self.data.objective)],
            "model": [(spec.model.name, self.architecture)],
            "forget": [(spec.forget.name, self.task)],
            "method": [(entry.name, self.methods[entry.label]) for entry in spec.method],
            "attack": [(entry.name, self.attacks[entry.label]) for entry in spec.attack],
            "audit": [(self.name_of("audit", label), part) for label, part in self.audits.items()],
        }
        return {table: {name: part.version for name, part in parts} for table, parts in named.items()}


def _weights_digest(path: str) -> str:
    require_file(Path(path), where="model.weights")
    return digest(Path(path))
