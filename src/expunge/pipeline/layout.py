"""From parts to stages. A stage is one computation with a content address made of all that enters it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch

from expunge.base.record import address
from expunge.base.spec import Entry
from expunge.pipeline.gallery import FORMAT as GALLERY
from expunge.pipeline.parts import Parts

LOOP = 1
"""Raised whenever the training loop or the way stages are run would compute other numbers."""


@dataclass(frozen=True)
class Stage:
    """One computation of a run."""

    kind: str
    """`measure`, `original`, `reference`, `unlearn`, `shadow`, `attack`, `audit`, `diagnostic` or `gallery`."""
    model: str
    """`original`, `reference` or a method's label; empty for `measure` and `gallery`."""
    seed: int | None
    """The run's seed that it belongs to."""
    attack: str | None
    """Label of the attack that it is, or comes after; of a shadow, that it was attacked with."""
    part: str
    """Label of the method, attack, audit or diagnostic that it runs; a shadow's number."""
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
        first = self.attack if self.kind in ("audit", "shadow") else self.start
        after = f"after {first}" if first else ""
        seed = "" if self.seed is None else f"seed {self.seed}: "
        return seed + " ".join(word for word in [*words, after] if word)


@dataclass(frozen=True)
class Layout:
    """What a run of these parts computes."""

    parts: Parts

    def stages(self) -> Iterator[Stage]:
        """All of them, each after those that it needs, in the order of the results."""
        # What is measured takes training too, with the same recipe.
        trained = {"training": self.parts.training.fingerprint()}
        measure = self._stage("measure", "", None, None, "measure", trained, ()) if self.parts.task.measures else None
        if measure:
            yield measure
        needs = (measure.key,) if measure else ()
        basis: Stage | None = None
        first: list[Stage] = []
        for seed in self.parts.spec.seeds:
            # One model of the user's is one original and one unlearned model, whatever the number of references.
            known = basis if self.parts.about_one_model else None
            basis = known or self._original(seed, needs)
            found = list(self._of_seed(seed, basis, needs, only_reference=known is not None))
            first = first or found
            yield from found
        if self.parts.spec.gallery:
            yield self._gallery(first, needs)

    def _gallery(self, stages: list[Stage], measured: tuple[str, ...]) -> Stage:
        models = [stage for stage in stages if stage.kind not in ("audit", "diagnostic", "shadow")]
        # Its output names the models, so that here, unlike elsewhere, a label is part of the address.
        facts = {"format": GALLERY, "models": [(stage.model, stage.attack) for stage in models]}
        needs = (*measured, *(stage.key for stage in models))
        return self._stage("gallery", "", self.parts.spec.seeds[0], None, "gallery", facts, needs)

    def _original(self, seed: int, measured: tuple[str, ...]) -> Stage:
        weights = {"weights": self.parts.own_digest} if self.parts.about_one_model else {}
        facts = {"training": self.parts.training.fingerprint(), **weights}
        return self._stage("original", "original", seed, None, "original", facts, measured)

    def _of_seed(
        self, seed: int, original: Stage, measured: tuple[str, ...], *, only_reference: bool
    ) -> Iterator[Stage]:
        facts = {"training": self.parts.training.fingerprint()}
        models = {} if only_reference else {"original": original}
        models["reference"] = self._stage("reference", "reference", seed, None, "reference", facts, measured)
        for entry in () if only_reference else self.parts.spec.chained:
            needs, label = (*measured, models[entry.after or "original"].key), entry.label
            made = self._stage("unlearn", label, seed, None, label, self._unlearning(entry), needs)
            models[label] = replace(made, start=entry.after)
        yield from models.values()
        yield from () if only_reference else self._diagnostics(original)
        shadows = self._shadows(original.seed, measured)
        attacked_shadows = {attack: self._attacked_shadows(attack, shadows, measured) for attack in self.parts.attacks}
        for made_like in () if only_reference else (shadows, *attacked_shadows.values()):
            yield from chain.from_iterable(made_like.values())
        for label, model in models.items():
            yield from self._audits(label, model, original, measured, None, shadows)
            for attack in self.parts.attacks if label != "original" else ():
                part = self._attacking(attack)
                attacked = self._stage("attack", label, seed, attack, attack, part, (*measured, model.key))
                yield attacked
                yield from self._audits(label, attacked, original, measured, attack, attacked_shadows[attack])

    def _attacking(self, attack: str) -> dict[str, Any]:
        return {"part": self.parts.attacks[attack].fingerprint()}

    def _unlearning(self, entry: Entry) -> dict[str, Any]:
        facts = {"part": self.parts.methods[entry.label].fingerprint(), "budget": entry.budget}
        return facts | {"training": self.parts.training.fingerprint()}

    def _shadows(self, seed: int | None, measured: tuple[str, ...]) -> dict[str, list[Stage]]:
        """By model, as many as an audit asks for at most; references of one model share its problem and its shadows."""
        count = max(audit.shadow_pairs for audit in self.parts.audits.values())

        def made(model: str, facts: dict[str, Any], needs: list[tuple[str, ...]]) -> list[Stage]:
            return [
                self._stage("shadow", model, seed, None, str(i), {"index": i, **facts}, keys)
                for i, keys in enumerate(needs)
            ]

        facts = {"training": self.parts.training.fingerprint()}
        found = {model: made(model, {"of": model, **facts}, [measured] * count) for model in ("original", "reference")}
        for entry in self.parts.spec.chained:
            needs = [(*measured, stage.key) for stage in found[entry.after or "original"]]
            found[entry.label] = made(entry.label, self._unlearning(entry), needs)
        return found

    def _attacked_shadows(
        self, attack: str, shadows: dict[str, list[Stage]], measured: tuple[str, ...]
    ) -> dict[str, list[Stage]]:
        """By model, as many as an audit asks for that is repeated after attacks."""
        count = max((audit.shadow_pairs for audit in self.parts.audits.values() if audit.after_attack), default=0)

        def attacked(shadow: Stage) -> Stage:
            facts, needs = {"index": int(shadow.part), **self._attacking(attack)}, (*measured, shadow.key)
            return self._stage("shadow", shadow.model, shadow.seed, attack, shadow.part, facts, needs)

        return {model: [attacked(shadow) for shadow in found[:count]] for model, found in shadows.items()}

    def _audits(
        self,
        label: str,
        model: Stage,
        basis: Stage,
        measured: tuple[str, ...],
        attack: str | None,
        shadows: dict[str, list[Stage]],
    ) -> Iterator[Stage]:
        for name, audit in self.parts.audits.items():
            if attack is not None and not audit.after_attack:
                continue
            # A retrained model is held against what was trained and left alone, as the original is.
            around = [*shadows["original" if label == "reference" else label], *shadows["reference"]]
            keys = [stage.key for stage in around if int(stage.part) < audit.shadow_pairs]
            needs = tuple(dict.fromkeys((*measured, model.key, *keys, basis.key)))
            yield self._stage("audit", label, model.seed, attack, name, {"part": audit.fingerprint()}, needs)

    def _diagnostics(self, original: Stage) -> Iterator[Stage]:
        needs, first = (*original.needs, original.key), original.seed == self.parts.spec.seeds[0]
        for label, diagnostic in self.parts.diagnostics.items():
            if first or diagnostic.repeats(self.parts.data):
                facts = {"part": diagnostic.fingerprint(), "training": self.parts.training.fingerprint()}
                yield self._stage("diagnostic", "original", original.seed, None, label, facts, needs)

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
            "task_seed": None if seed is None else self.parts.task_seed(seed),
            "needs": needs,
            "loop": LOOP,
            "torch": torch.__version__,
            "threads": self.parts.spec.threads,
            "device": self.parts.device.type,
            "precision": self.parts.spec.precision,
            "data": self.parts.source.fingerprint(),
            "model": self.parts.architecture.fingerprint(),
            "task": self.parts.task.fingerprint(),
            "augmentation": [part.fingerprint() for part in self.parts.augmentations.values()],
            "objective": self.parts.data.objective.fingerprint(),
        }
        return Stage(kind, model, seed, attack, part, address(content), needs)
