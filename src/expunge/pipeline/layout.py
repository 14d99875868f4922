"""Lay out the stages of a run: what it computes, in which order, and from which inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from expunge.base import registry
from expunge.base.part import Part
from expunge.base.record import address
from expunge.base.spec_tables import Entry
from expunge.base.store import FORMAT
from expunge.base.user_code import source_digest
from expunge.evidence.table import GIVEN, ORIGINAL, REFERENCE
from expunge.pipeline.parts import Parts
from expunge.pipeline.stage import Inputs, Stage
from expunge.pipeline.stage_kind import kind_of

LOOP = 1
"""Increase this number with every change after which training or stages compute other numbers."""
Shadows = Mapping[str, list[Stage]]
"""Model -> its shadow models, in the order of their numbers."""


@dataclass(frozen=True)
class Layout:
    """The stages of a run with these parts."""

    parts: Parts

    def stages(self) -> list[Stage]:
        """All stages in the order of the results, each after the stages that it needs."""
        stages, shared = [], set[str]()
        for stage in self._stages():
            # Methods with the same statistics share one stage; every other stage has its own line in the record.
            if stage.kind != "measure" or stage.key not in shared:
                stages.append(stage)
            shared.add(stage.key)
        for name in registry.names("stage"):
            stages += list(kind_of(name).added(self, stages))
        return stages

    def _stages(self) -> Iterator[Stage]:
        yield from [self._measured] if self._measured else []
        original: Stage | None = None
        for seed in self.parts.spec.seeds:
            # If verdicts are about one model, there is one original for any number of references.
            known = original if self.parts.about_one_model else None
            original = known or self._original(seed)
            yield from self._of_seed(seed, original, only_reference=known is not None)

    @cached_property
    def _measured(self) -> Stage | None:
        """The stage of the task's statistics, which train models with the same recipe; `None` if there are none."""
        if not self.parts.task.measures:
            return None
        return self._made("measure", "", None, None, "measure", self._training, {})

    @cached_property
    def _everywhere(self) -> dict[str, Any]:
        """Fingerprints that enter every key; made once, because the user's code may consist of many files."""
        return {
            "data": self.parts.source.fingerprint(),
            "model": self.parts.architecture.fingerprint(),
            "task": self.parts.task.fingerprint(),
            "augmentation": [part.fingerprint() for part in self.parts.augmentations.values()],
            "objective": self.parts.data.objective.fingerprint(),
        }

    @cached_property
    def _training(self) -> dict[str, Any]:
        return {"training": self.parts.training.fingerprint()} | self._adapter("train", "")

    def _adapter(self, kind: str, label: str) -> dict[str, Any]:
        """Facts of the adapter that a part trains; none without one, so that other keys stay."""
        adapter = self.parts.adapters.get((kind, label))
        return {} if adapter is None else {f"{kind} adapter": adapter.fingerprint()}

    @cached_property
    def _watched(self) -> dict[str, Any]:
        """Facts of a training with monitors. They do not change the weights but add a file."""
        monitors = {label: part.fingerprint() for label, part in self.parts.monitors.items()}
        return self._training | ({"monitors": monitors} if monitors else {})

    def _original(self, seed: int) -> Stage:
        weights = {"weights": self.parts.own_digest} if self.parts.gives_original else {}
        return self.stage("original", ORIGINAL, seed, None, "original", self._watched | weights, {})

    def _reference(self, seed: int) -> Stage:
        if self.parts.trains:
            return self.stage("reference", REFERENCE, seed, None, "reference", self._watched, {})
        place = f"references[{self.parts.spec.seeds.index(seed)}]"
        return self.stage("reference", REFERENCE, seed, None, GIVEN, {GIVEN: self._digests[place]}, {})

    @cached_property
    def _digests(self) -> dict[str, str]:
        return self.parts.inputs.digests()

    def _of_seed(self, seed: int, original: Stage, *, only_reference: bool) -> Iterator[Stage]:
        models = {} if only_reference else {ORIGINAL: original}
        if self.parts.has_references:
            models[REFERENCE] = self._reference(seed)
        yield from models.values()
        for entry in () if only_reference else self.parts.spec.chained:
            start = models[entry.after or ORIGINAL]
            *statistics, unlearned = self._unlearning("unlearn", entry, start, original, entry.label, {})
            yield from statistics
            models[entry.label] = replace(unlearned, start=entry.after)
            yield models[entry.label]
        yield from () if only_reference else self._diagnostics(original)
        # References of one original share its problem and its shadow models, which are listed once, with the original.
        shadow_stages = self._shadows(original.seed)
        shadows = _numbered(shadow_stages)
        attacked_stages = {attack: self._attacked_shadows(attack, shadows) for attack in self.parts.attacks}
        if not only_reference:
            yield from shadow_stages
            for stages in attacked_stages.values():
                yield from stages
        for label, model in ((label, model) for label, model in models.items() if label in self.parts.models):
            yield from self._audits(label, model, original, None, shadows)
            for attack in (a for a, part in self.parts.attacks.items() if label != ORIGINAL or part.control):
                *statistics, attacked = self._attacking("attack", attack, model, original, attack, {})
                yield from (*statistics, attacked)
                yield from self._audits(label, attacked, original, attack, _numbered(attacked_stages[attack]))

    def _unlearning(
        self, kind: str, entry: Entry, start: Stage, original: Stage, part: str, facts: dict[str, Any]
    ) -> list[Stage]:
        """The stage with the method's statistics of its start model, if it has any; then the method's own stage.

        The original is an input of its own: a method after another one starts from that one's model.
        """
        method = self.parts.methods[entry.label]
        facts = facts | self._training | {"part": method.fingerprint(), "budget": entry.budget}
        facts |= self._adapter("method", entry.label)
        statistics, inputs = self._statistics("method", entry.label, start, original)
        return [*statistics, self.stage(kind, entry.label, start.seed, None, part, facts, inputs)]

    def _attacking(
        self, kind: str, attack: str, model: Stage, original: Stage, part: str, facts: dict[str, Any]
    ) -> list[Stage]:
        facts = facts | {"part": self.parts.attacks[attack].fingerprint()} | self._adapter("attack", attack)
        statistics, inputs = self._statistics("attack", attack, model, original)
        return [*statistics, self.stage(kind, model.model, model.seed, attack, part, facts, inputs)]

    def _shadows(self, seed: int | None) -> list[Stage]:
        """Shadows of each model; as many as the audit with the most `shadow_pairs` needs."""
        count = max(audit.shadow_pairs for audit in self.parts.audits.values())
        stages, shadows = list[Stage](), dict[str, list[Stage]]()
        for model in (ORIGINAL, REFERENCE):
            facts = {"of": model, **self._training}
            shadows[model] = [
                self.stage("shadow", model, seed, None, str(i), {"index": i, **facts}, {}) for i in range(count)
            ]
            stages += shadows[model]
        for entry in self.parts.spec.chained:
            starts = shadows[entry.after or ORIGINAL]
            unlearned = [
                self._unlearning("shadow", entry, start, original, start.part, {"index": int(start.part)})
                for start, original in zip(starts, shadows[ORIGINAL], strict=True)
            ]
            shadows[entry.label] = [last for *_, last in unlearned]
            stages += [stage for group in unlearned for stage in group]
        return stages

    def _attacked_shadows(self, attack: str, shadows: Shadows) -> list[Stage]:
        """Attacked shadows of each model; as many as the audits that are repeated after attacks need."""
        count = max((audit.shadow_pairs for audit in self.parts.audits.values() if audit.after_attack), default=0)
        return [
            stage
            for of_model in shadows.values()
            for shadow, original in zip(of_model[:count], shadows[ORIGINAL], strict=False)
            for stage in self._attacking("shadow", attack, shadow, original, shadow.part, {"index": int(shadow.part)})
        ]

    def _audits(
        self, label: str, model: Stage, original: Stage, attack: str | None, shadows: Shadows
    ) -> Iterator[Stage]:
        # A retrained model, like the original, is compared with shadows that were only trained.
        around = {
            "knew": shadows.get(ORIGINAL if label == REFERENCE else label, []),
            "never": shadows.get(REFERENCE, []),
        }
        for name, audit in self.parts.audits.items():
            if attack is not None and not audit.after_attack:
                continue
            statistics, inputs = self._statistics("audit", name, model, original)
            yield from statistics
            for role, stages in around.items() if audit.shadow_pairs else ():
                inputs[role] = tuple(stage.key for stage in stages[: audit.shadow_pairs])
            yield self.stage("audit", label, model.seed, attack, name, {"part": audit.fingerprint()}, inputs)

    def _diagnostics(self, original: Stage) -> Iterator[Stage]:
        first = original.seed == self.parts.spec.seeds[0]
        for label, diagnostic in self.parts.diagnostics.items():
            if first or diagnostic.repeats(self.parts.data):
                facts = {"part": diagnostic.fingerprint(), **self._training}
                statistics, inputs = self._statistics("diagnostic", label, original, original)
                yield from statistics
                yield self.stage("diagnostic", ORIGINAL, original.seed, None, label, facts, inputs)

    def _statistics(
        self, kind: str, label: str, model: Stage, original: Stage
    ) -> tuple[list[Stage], dict[str, str | tuple[str, ...]]]:
        """The stage with a part's statistics of a model, if it has any, and the inputs of the part's own stage."""
        inputs: dict[str, str | tuple[str, ...]] = {"model": model.key, "original": original.key}
        part = self.parts.part(kind, label)
        if not getattr(part, "measures", False):
            return [], inputs
        facts = {"statistics": _measuring(part)}
        stage = self.stage("measure", model.model, model.seed, model.attack, label, facts, dict(inputs))
        return [replace(stage, part_kind=kind)], {**inputs, "statistics": stage.key}

    def stage(
        self, kind: str, model: str, seed: int | None, attack: str | None, part: str, facts: Any, inputs: Inputs
    ) -> Stage:
        """A stage with its key.

        Args:
            kind: Name of the kind of stage.
            model: As in `Stage`, as are `seed`, `attack` and `part`.
            seed: The run's seed.
            attack: Label of the attack.
            part: Label of the part.
            facts: Plain data on which the output depends, other than the inputs, the problem and the recipe.
            inputs: Keys by name. If the task has statistics, their key is added as `measured`.
        """
        measured = {"measured": self._measured.key} if self._measured else {}
        return self._made(kind, model, seed, attack, part, facts, {**measured, **inputs})

    def _made(
        self, kind: str, model: str, seed: int | None, attack: str | None, part: str, facts: Any, inputs: Inputs
    ) -> Stage:
        content = {
            "stage": kind_of(kind).fingerprint(),
            "facts": facts,
            "labels": self.parts.labels(kind, model, attack, part),
            "seed": seed,
            "task_seed": None if seed is None else self.parts.task_seed(seed),
            "inputs": inputs,
            "loop": LOOP,
            "format": FORMAT,
            "torch": torch.__version__,
            "threads": self.parts.spec.threads,
            "device": self.parts.device.type,
            "precision": self.parts.spec.precision,
            **self._everywhere,
        }
        return Stage(kind, model, seed, attack, part, address(content), inputs)


def _numbered(stages: list[Stage]) -> Shadows:
    """Shadows by their model; stages with statistics are left out."""
    models = dict.fromkeys(stage.model for stage in stages if stage.kind == "shadow")
    return {model: [s for s in stages if s.kind == "shadow" and s.model == model] for model in models}


def _measuring(part: Any) -> dict[str, Any]:
    """Plain data on which a part's statistics depend, for the key of their stage."""
    if not hasattr(part, "measuring"):
        facts: dict[str, Any] = part.fingerprint()
        return facts
    # The user's code has no reliable version number: the digest of the file that defines `measure` replaces it.
    ours = type(part).measure.__module__.partition(".")[0] == Part.__module__.partition(".")[0]
    return dict(part.measuring()) | ({} if ours else {"code": source_digest(type(part).measure)})
