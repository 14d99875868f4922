"""From a spec to its parts and stages. A stage is one computation with a content address made of all that enters it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.part import Part
from expunge.base.record import address, file_digest
from expunge.base.seeds import derive
from expunge.base.spec import Entry, Spec
from expunge.core import checkpoint
from expunge.core.contracts import Architecture, Attack, Audit, Method, Probe, Source, Task
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.pipeline.gallery import FORMAT as GALLERY
from expunge.train.training import TrainedRecipe, Training

LOOP = 1
"""Raised whenever the training loop or the way stages are run would compute other numbers."""


@dataclass(frozen=True)
class Stage:
    """One computation of a run."""

    kind: str
    """`measure`, `original`, `reference`, `unlearn`, `shadow`, `attack`, `audit`, `probe` or `gallery`."""
    model: str
    """`original`, `reference` or a method's label; empty for `measure` and `gallery`."""
    seed: int | None
    """The run's seed that it belongs to."""
    attack: str | None
    """Label of the attack that it is, or comes after."""
    part: str
    """Label of the method, attack or audit that it runs; a shadow's number."""
    key: str
    """Content address of the output."""
    needs: tuple[str, ...] = field(default=(), repr=False)
    """Keys of the stages that must come first."""
    start: str | None = None
    """Label of the method whose model a method starts from."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        words = [self.kind, self.model if self.kind != self.model else "", self.part if self.part != self.model else ""]
        first = self.attack if self.kind == "audit" else self.start
        after = f"after {first}" if first else ""
        seed = "" if self.seed is None else f"seed {self.seed}: "
        return seed + " ".join(word for word in [*words, after] if word)


@dataclass(frozen=True)
class Plan:
    """A spec with its parts made and its stages laid out."""

    spec: Spec

    def __post_init__(self) -> None:
        # Parts are made at once, so that a bad setting is reported before anything is computed.
        _ = self.source, self.architecture, self.training, self.task, self.methods, self.attacks, self.audits

    def _build(self, kind: str, entry: Entry, where: str) -> Part:
        return registry.build(kind, entry.name, entry.settings, where=where, folder=self.spec.folder)

    @cached_property
    def source(self) -> Source:
        """The data set."""
        return cast(Source, self._build("data", self.spec.data, "data"))

    @cached_property
    def architecture(self) -> Architecture:
        """The model family."""
        return cast(Architecture, self._build("model", self.spec.model, "model"))

    @cached_property
    def training(self) -> Training:
        """How models are trained."""
        return Training.from_table(self.spec.train, where="train")

    @cached_property
    def task(self) -> Task:
        """What is to be forgotten."""
        return cast(Task, self._build("task", self.spec.forget, "forget"))

    @cached_property
    def methods(self) -> dict[str, Method]:
        """By label, in the spec's order."""
        return {e.label: cast(Method, self._build("method", e, f"method[{i}]")) for i, e in enumerate(self.spec.method)}

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """By label, in the spec's order."""
        return {e.label: cast(Attack, self._build("attack", e, f"attack[{i}]")) for i, e in enumerate(self.spec.attack)}

    @cached_property
    def audits(self) -> dict[str, Audit]:
        """By label: what always belongs to such data, then the spec's."""
        always = ["accuracy", "recitation"] if self.data.kind == "tokens" else ["accuracy"]
        named = {entry.name for entry in self.spec.audit}
        entries = [(Entry(name, name), name) for name in always if name not in named]
        entries += [(entry, f"audit[{i}]") for i, entry in enumerate(self.spec.audit)]
        audits = {entry.label: cast(Audit, self._build("audit", entry, where)) for entry, where in entries}
        for label, audit in audits.items():
            if self.data.kind not in audit.kinds:
                finding = f"{label!r} cannot measure {self.data.kind}"
                raise SpecError(finding, where="audit", allowed=", ".join(sorted(audit.kinds)))
        return audits

    def name_of(self, kind: str, label: str) -> str:
        """The registered name behind an attack's or an audit's label; audits that always run have none of their own."""
        entries = self.spec.attack if kind == "attack" else self.spec.audit
        return next((entry.name for entry in entries if entry.label == label), label)

    @cached_property
    def data(self) -> Data:
        """The data set, loaded."""
        return self.source()

    def problem(self, seed: int, measured: dict[str, torch.Tensor]) -> Problem:
        """The seed's problem; for one model of the user's always the same."""
        return self.task(self.data, derive(self._task_seed(seed), "task"), measured)

    def _task_seed(self, seed: int) -> int:
        return self.spec.seeds[0] if self.about_one_model else seed

    def recipe(self, data: Data) -> TrainedRecipe:
        """How models on this view of the data are trained."""
        return TrainedRecipe(self.architecture, self.training, data)

    def probe(self, name: str) -> Probe:
        """A probe with its default settings."""
        return cast(Probe, registry.build("probe", name, {}, where=f"probe {name!r}"))

    def probe_stage(self, name: str) -> Stage:
        """The stage that runs a probe on the first seed's original."""
        original = next(stage for stage in self.stages if stage.kind == "original")
        facts = {"part": self.probe(name).fingerprint(), "training": self.training.fingerprint()}
        needs = (*original.needs, original.key)
        return self._stage("probe", "original", self.spec.seeds[0], None, name, facts, needs)

    @property
    def about_one_model(self) -> bool:
        """Whether the verdict is about the user's own model rather than about methods."""
        return self._own_digest is not None

    @cached_property
    def _own_digest(self) -> str | None:
        brought = self.architecture.original_digest() if isinstance(self.architecture, Architecture) else None
        if self.spec.weights is None or brought is None:
            return brought if self.spec.weights is None else self._weights_digest(self.spec.weights)
        finding = f"{self.spec.model.name!r} brings its own weights"
        raise SpecError(finding, where="model.weights", remedy="leave weights out, or name another model")

    def original(self, data: Data) -> nn.Module | None:
        """The user's own model; none where originals are trained.

        Raises:
            SpecError: Its weights do not fit.
        """
        if self.spec.weights is not None:
            return checkpoint.load(self.recipe(data).build(0), Path(self.spec.weights), where="model.weights")
        return self.architecture.original(data) if self.about_one_model else None

    def resolved(self) -> dict[str, Any]:
        """Everything that the run will use, given or default, as plain data."""
        spec = self.spec

        def table(entry: Entry, part: Part, **extra: Any) -> dict[str, Any]:
            return {"name": entry.name, **part.settings(), **extra}

        def labelled(entry: Entry, part: Part, **extra: Any) -> dict[str, Any]:
            return table(entry, part, **extra) | ({"label": entry.label} if entry.label != entry.name else {})

        def extras(entry: Entry) -> dict[str, Any]:
            found = {"budget": entry.budget, "after": entry.after}
            return {key: value for key, value in found.items() if value is not None}

        return {
            "name": spec.name,
            "seeds": list(spec.seeds),
            "threads": spec.threads,
            "gallery": spec.gallery,
            "data": table(spec.data, self.source),
            "model": table(spec.model, self.architecture) | ({"weights": spec.weights} if spec.weights else {}),
            "train": self.training.settings(),
            "forget": table(spec.forget, self.task),
            "method": [labelled(e, self.methods[e.label], **extras(e)) for e in spec.method],
            "attack": [labelled(e, self.attacks[e.label]) for e in spec.attack],
            "audit": [labelled(e, self.audits[e.label], required=e.required) for e in spec.audit],
            "gate": [{"method": g.method, "verdict": g.verdict} for g in spec.gate],
        }

    def versions(self) -> dict[str, dict[str, int]]:
        """Version of every part, by the spec's table and the part's name."""
        spec = self.spec
        found: dict[str, list[tuple[str, Part]]] = {
            "data": [(spec.data.name, self.source)],
            "model": [(spec.model.name, self.architecture)],
            "forget": [(spec.forget.name, self.task)],
            "method": [(entry.name, self.methods[entry.label]) for entry in spec.method],
            "attack": [(entry.name, self.attacks[entry.label]) for entry in spec.attack],
            "audit": [(self.name_of("audit", label), part) for label, part in self.audits.items()],
        }
        return {table: {name: part.version for name, part in parts} for table, parts in found.items()}

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages, each after those that it needs, in the order of the results."""
        return list(self._all())

    def _all(self) -> Iterator[Stage]:
        # What is measured takes training too, with the same recipe.
        trained = {"training": self.training.fingerprint()}
        measure = self._stage("measure", "", None, None, "measure", trained, ()) if self.task.measures else None
        if measure:
            yield measure
        needs = (measure.key,) if measure else ()
        basis: Stage | None = None
        first: list[Stage] = []
        for seed in self.spec.seeds:
            # One model of the user's is one original and one unlearned model, whatever the number of references.
            known = basis if self.about_one_model else None
            basis = known or self._original(seed, needs)
            found = list(self._of_seed(seed, basis, needs, only_reference=known is not None))
            first = first or found
            yield from found
        if self.spec.gallery:
            yield self._gallery(first, needs)

    def _gallery(self, stages: list[Stage], measured: tuple[str, ...]) -> Stage:
        models = [stage for stage in stages if stage.kind != "audit"]
        # Its output names the models, so that here, unlike elsewhere, a label is part of the address.
        facts = {"format": GALLERY, "models": [(stage.model, stage.attack) for stage in models]}
        needs = (*measured, *(stage.key for stage in models))
        return self._stage("gallery", "", self.spec.seeds[0], None, "gallery", facts, needs)

    def _original(self, seed: int, measured: tuple[str, ...]) -> Stage:
        weights = {"weights": self._own_digest} if self.about_one_model else {}
        facts = {"training": self.training.fingerprint(), **weights}
        return self._stage("original", "original", seed, None, "original", facts, measured)

    def _weights_digest(self, path: str) -> str:
        try:
            return file_digest(Path(path))
        except OSError as error:
            raise SpecError(
                f"cannot read {path} ({error.strerror})", where="model.weights", remedy="check the path"
            ) from None

    def _of_seed(
        self, seed: int, original: Stage, measured: tuple[str, ...], *, only_reference: bool
    ) -> Iterator[Stage]:
        facts = {"training": self.training.fingerprint()}
        models = {} if only_reference else {"original": original}
        models["reference"] = self._stage("reference", "reference", seed, None, "reference", facts, measured)
        for entry in () if only_reference else self.spec.chained:
            needs, label = (*measured, models[entry.after or "original"].key), entry.label
            made = self._stage("unlearn", label, seed, None, label, self._unlearning(entry), needs)
            models[label] = replace(made, start=entry.after)
        yield from models.values()
        shadows = self._shadows(original.seed, measured)
        yield from () if only_reference else chain.from_iterable(shadows.values())
        for label, model in models.items():
            yield from self._audits(label, model, original, measured, None, shadows)
            for attack in self.attacks if label != "original" else ():
                part = {"part": self.attacks[attack].fingerprint()}
                attacked = self._stage("attack", label, seed, attack, attack, part, (*measured, model.key))
                yield attacked
                yield from self._audits(label, attacked, original, measured, attack, shadows)

    def _unlearning(self, entry: Entry) -> dict[str, Any]:
        facts = {"part": self.methods[entry.label].fingerprint(), "budget": entry.budget}
        return facts | {"training": self.training.fingerprint()}

    def _shadows(self, seed: int | None, measured: tuple[str, ...]) -> dict[str, list[Stage]]:
        """By model, as many as an audit asks for at most; references of one model share its problem and its shadows."""
        count = max(audit.shadow_pairs for audit in self.audits.values())

        def made(model: str, facts: dict[str, Any], needs: list[tuple[str, ...]]) -> list[Stage]:
            return [
                self._stage("shadow", model, seed, None, str(i), {"index": i, **facts}, keys)
                for i, keys in enumerate(needs)
            ]

        facts = {"training": self.training.fingerprint()}
        found = {model: made(model, {"of": model, **facts}, [measured] * count) for model in ("original", "reference")}
        for entry in self.spec.chained:
            needs = [(*measured, stage.key) for stage in found[entry.after or "original"]]
            found[entry.label] = made(entry.label, self._unlearning(entry), needs)
        return found

    def _audits(
        self,
        label: str,
        model: Stage,
        basis: Stage,
        measured: tuple[str, ...],
        attack: str | None,
        shadows: dict[str, list[Stage]],
    ) -> Iterator[Stage]:
        for name, audit in self.audits.items():
            if attack is not None and not audit.after_attack:
                continue
            # A retrained model is held against what was trained and left alone, as the original is.
            around = [*shadows["original" if label == "reference" else label], *shadows["reference"]]
            keys = [stage.key for stage in around if int(stage.part) < audit.shadow_pairs]
            needs = tuple(dict.fromkeys((*measured, model.key, *keys, basis.key)))
            yield self._stage("audit", label, model.seed, attack, name, {"part": audit.fingerprint()}, needs)

    def _stage(
        self,
        kind: str,
        model: str,
        seed: int | None,
        attack: str | None,
        part: str,
        facts: dict[str, Any],
        needs: tuple[str, ...],
    ) -> Stage:
        content = {
            "stage": kind,
            "facts": facts,
            "seed": seed,
            "task_seed": None if seed is None else self._task_seed(seed),
            "needs": needs,
            "loop": LOOP,
            "torch": torch.__version__,
            "threads": self.spec.threads,
            "data": self.source.fingerprint(),
            "model": self.architecture.fingerprint(),
            "task": self.task.fingerprint(),
        }
        return Stage(kind, model, seed, attack, part, address(content), needs)
