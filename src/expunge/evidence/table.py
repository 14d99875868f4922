"""From scores to rows and verdicts. This module computes everything that a run reports from its score files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from expunge.base.errors import RunError, SpecError
from expunge.base.manifest import Manifest
from expunge.base.record import spelled
from expunge.evidence.estimate import Estimate
from expunge.evidence.quantity import Quantity
from expunge.evidence.reasons import GIVEN_REFERENCES, changed_nothing, not_read
from expunge.evidence.scores import Scores, load, over_runs
from expunge.evidence.tow import tow_rows
from expunge.evidence.verdict import Verdict, judge_method, judge_model, judge_without_reference

ORIGINAL, REFERENCE = "original", "reference"
GIVEN = "given"
"""The part of a `reference` stage that loads a model of the user's instead of training one."""

UNMERGED = "+adapter"
"""Behind the label of a method that trained an adapter: the model that is base and adapter, not merged. No label of a
spec may have a plus. Such a model is shown and not judged."""

Key = tuple[str, str]
"""Metric and split."""
HIDDEN = ("recoverability", "patched", "in_context")
"""Metrics that read hidden states instead of answers."""


def judged(models: Sequence[str]) -> list[str]:
    """Those of the models that get a verdict: what the methods made, merged."""
    return [model for model in models if model not in (ORIGINAL, REFERENCE) and not model.endswith(UNMERGED)]


@dataclass(frozen=True)
class Measured:
    """Scores with their model's name in results, the run's seed, and the attack that came before."""

    model: str
    seed: int
    attack: str | None
    scores: Scores


@dataclass(frozen=True)
class Table:
    """All scores of a run, with the order in which models, seeds and attacks are shown.

    Args:
        measured: Every score of the run.
        models: `original`, `reference`, then the methods' labels, some with a second row.
        seeds: The run's seeds.
        attacks: The attacks' labels.
        required: Metrics that the spec requires, besides those whose scores have `required`.
        about_one_model: Whether one original and one unlearned model are compared with many references.
        training: Labels of the attacks that train; by default all attacks.
        unchanged: Method and seed of each run of a method that changed no weight.
        given: Whether the references are models of the user's.
        kept: Method -> the last layer below its first change, if it changed only the upper half of the original.

    Raises:
        SpecError: Two audits measured the same metric on the same split of one model.
    """

    measured: Sequence[Measured] = field(repr=False)
    models: Sequence[str]
    seeds: Sequence[int]
    attacks: Sequence[str]
    required: Sequence[str] = ()
    about_one_model: bool = False
    training: Sequence[str] | None = None
    unchanged: Sequence[tuple[str, int]] = ()
    given: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        index: dict[tuple[Any, ...], Scores] = {}
        for m in self.measured:
            key = (m.model, m.seed, m.attack, *m.scores.key)
            if index.setdefault(key, m.scores) is not m.scores:
                raise _measured_twice(m)
        object.__setattr__(self, "_index", index)

    def get(self, model: str, seed: int, attack: str | None, key: Key) -> Scores | None:
        """The scores of one model, seed, attack and metric, none if they were not measured."""
        index: dict[tuple[Any, ...], Scores] = self._index  # type: ignore[attr-defined]
        return index.get((model, seed, attack, *key))

    @property
    def keys(self) -> list[Key]:
        """Metrics and splits in the order in which they were measured."""
        return list(dict.fromkeys(m.scores.key for m in self.measured))

    def rows(self) -> list[dict[str, Any]]:
        """One row per model, seed, attack, metric and split, then the rows of ToW; seed `None` means over seeds."""
        rows: list[dict[str, Any]] = []
        for model in self.models:
            for attack in (None, *self.attacks):
                for key in self.keys:
                    rows += self._rows_of(model, attack, key)
        return rows + tow_rows(rows)

    def _rows_of(self, model: str, attack: str | None, key: Key) -> list[dict[str, Any]]:
        rows, measured, gaps = [], [], []
        for seed in self.seeds:
            scores = self.get(model, seed, attack, key)
            if scores is None:
                continue
            estimate, gap = scores.estimate(), self._gap(scores.reduced(), model, seed, attack, key)
            measured.append(scores)
            gaps.append(gap)
            rows.append(_row(model, seed, attack, key, estimate, gap))
        if measured:
            known = [gap for gap in gaps if gap is not None]
            gap = float(np.mean(known)) if known else None
            rows.append(_row(model, None, attack, key, over_runs(measured), gap))
        return rows

    def _gap(self, value: float, model: str, seed: int, attack: str | None, key: Key) -> float | None:
        """Difference to the seed's reference after the same attack; for one model, to the mean of all references."""
        seeds = self.seeds if self.about_one_model else [seed]
        scores = [self.get(REFERENCE, s, attack, key) for s in seeds]
        references = [entry.reduced() for entry in scores if entry is not None]
        return None if model == REFERENCE or not references else value - float(np.mean(references))

    def verdicts(self) -> list[Verdict]:
        """One verdict per method, in order."""
        judge = judge_model if self.about_one_model else judge_method
        if not any(m.model == REFERENCE for m in self.measured):
            judge = judge_without_reference
        return [self._noted(judge(model, self.quantities(model), self.training)) for model in judged(self.models)]

    def _noted(self, verdict: Verdict) -> Verdict:
        """The verdict; if the method changed nothing, with that as its first reason."""
        if self.given:
            verdict = replace(verdict, reasons=[*verdict.reasons, GIVEN_REFERENCES])
        if verdict.verdict in ("erased", "inconclusive") and self._unread(verdict.model):
            reason = not_read(self.kept[verdict.model])
            verdict = replace(
                verdict, verdict="inconclusive", flags=["inconclusive"], reasons=[reason, *verdict.reasons]
            )
        seeds = [seed for model, seed in self.unchanged if model == verdict.model]
        runs = 1 if self.about_one_model else len(self.seeds)
        return replace(verdict, reasons=[changed_nothing(seeds, runs), *verdict.reasons]) if seeds else verdict

    def _unread(self, model: str) -> bool:
        """Whether a method kept the lower layers, and no audit of hidden states read what they know.

        An audit below the first change gives the original's values, to the bit.
        """

        def read(metric: str) -> bool:
            pairs = [[self.get(name, s, None, (metric, "forget")) for name in (ORIGINAL, model)] for s in self.seeds]
            return all(a is not None and b is not None and np.array_equal(a.values, b.values) for a, b in pairs)

        return model in self.kept and not any(map(read, HIDDEN))

    def quantities(self, model: str) -> list[Quantity]:
        """The quantities that decide the verdict about a model: knowledge, utility, and skill."""
        judged = {m.scores.key: m.scores for m in self.measured if m.scores.role in ("knowledge", "utility")}
        quantities = [self._quantity(model, key, scores.role) for key, scores in judged.items()]
        skilled = [key for key, scores in judged.items() if scores.role == "utility" and scores.baseline is not None]
        return quantities + [self._quantity(model, key, "skill") for key in skilled]

    def _quantity(self, model: str, key: Key, role: str) -> Quantity:
        def scores(name: str, attack: str | None = None) -> list[Scores]:
            entries = [self.get(name, seed, attack, key) for seed in self.seeds]
            return [entry for entry in entries if entry is not None]

        attacks = [attack for attack in self.attacks if scores(model, attack)]
        required = scores(ORIGINAL)[0].required or key[0] in self.required
        if role == "knowledge" and not scores(REFERENCE):
            return Quantity.against_held_out(
                scores(ORIGINAL),
                self._held_out(model, None, key),
                scores(model),
                {attack: (self._held_out(model, attack, key), scores(model, attack)) for attack in attacks},
                required=required,
            )
        reference = REFERENCE if scores(REFERENCE) else ORIGINAL
        return Quantity.from_scores(
            scores(ORIGINAL),
            scores(reference),
            scores(model),
            {a: (scores(reference, a) or scores(reference), scores(model, a)) for a in attacks},
            required=required,
            skill=role == "skill",
        )

    def _held_out(self, model: str, attack: str | None, key: Key) -> list[Scores]:
        """The model's scores on examples that no model was trained on: the task's holdout, otherwise the test set."""
        for split in ("holdout", "test"):
            entries = [self.get(model, seed, attack, (key[0], split)) for seed in self.seeds]
            if any(entries):
                return [replace(entry, role="knowledge") for entry in entries if entry is not None]
        raise SpecError(f"{key[0]} was not measured on held-out data", where="table", remedy="give the case a holdout")


def _measured_twice(entry: Measured) -> SpecError:
    metric, split = entry.scores.key
    after = f" after {entry.attack}" if entry.attack else ""
    return SpecError(
        f"{metric} on {split} of {entry.model}, seed {entry.seed}{after}, was measured twice",
        where="audit",
        allowed="each metric once, because rows and verdicts could not distinguish the two",
        remedy="keep one of the audits that measure it",
    )


def _row(
    model: str, seed: int | None, attack: str | None, key: Key, estimate: Estimate, gap: float | None
) -> dict[str, Any]:
    return {
        "model": model,
        "seed": seed,
        "attack": attack,
        "metric": key[0],
        "split": key[1],
        **{name: getattr(estimate, name) for name in ("value", "low", "high", "n", "unit", "better")},
        "gap": gap,
    }


def read_table(root: Path, manifest: Manifest) -> Table:
    """The table that a run's score files hold; needs no torch."""
    measured, required = [], []
    for stage in manifest.stages:
        file = stage.files.get("scores")
        if file is None:
            continue
        if stage.seed is None:
            raise RunError("these scores have no seed", where=str(root / file.path))
        for scores in load(root, file.path, file.sha256):
            measured.append(Measured(stage.model, stage.seed, stage.attack, scores))
            # A spec requires an audit by the audit's label, but a table requires metrics by name.
            if stage.kind == "audit" and stage.part in manifest.required and scores.role == "knowledge":
                required.append(scores.metric)
    return Table(
        measured,
        manifest.models,
        manifest.seeds,
        manifest.attacks,
        list(dict.fromkeys(required)),
        manifest.about_one_model,
        manifest.training,
        [(stage.model, stage.seed) for stage in manifest.stages if stage.changed is False and stage.seed is not None],
        any(stage.kind == REFERENCE and stage.part == GIVEN for stage in manifest.stages),
        {stage.model: stage.kept for stage in manifest.stages if stage.kept},
    )


def verdicts_text(table: Table) -> str:
    """Verdicts as JSON text; NaN and infinities are written as strings."""
    return json.dumps([spelled(verdict.as_json()) for verdict in table.verdicts()], indent=1, allow_nan=False) + "\n"
