"""Reads a finished run from its folder, for the page, the comparison and the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge.base.manifest import (
    Manifest,
    StageRecord,
    read_diagnosis,
    read_environment,
    read_manifest,
    read_spec,
)
from expunge.base.terminal import one_line
from expunge.evidence.table import ORIGINAL, REFERENCE, Table
from expunge.evidence.table import judged as judged_models
from expunge.reporting.text import over_seeds
from expunge.reporting.verify import judged

Json = dict[str, Any]
NAMES = {ORIGINAL: "original", REFERENCE: "retrained (reference)"}
"""Displayed names of the models that have a fixed name in results."""


@dataclass(frozen=True)
class Run:
    """The record of a finished run."""

    folder: Path
    manifest: Manifest
    spec: Json
    """The spec as run. An audit made in a notebook records only what is known, so any key may be missing."""
    environment: Json
    verdicts: list[Json]
    """Recomputed from the scores."""
    table: Table

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run's folder.

        Raises:
            SpecError: The folder holds no run, or one that has not finished.
            RunError: A file of the record is missing, changed or damaged, or its rows or verdicts are not those that
                the scores give.
        """
        manifest = read_manifest(folder)
        spec, environment = read_spec(folder, manifest), read_environment(folder, manifest)
        table, verdicts = judged(folder, manifest)
        return cls(folder, manifest, spec, environment, verdicts, table)

    @property
    def name(self) -> str:
        """The spec's name, or the folder's."""
        return one_line(str(self.spec.get("name") or self.folder.resolve().name))

    @property
    def methods(self) -> list[str]:
        """Labels of the methods, in the spec's order."""
        return judged_models(self.table.models)

    @property
    def retrained(self) -> bool:
        """Whether the run has retrained models."""
        return any(entry.model == REFERENCE for entry in self.table.measured)

    @property
    def versions(self) -> Mapping[str, Mapping[str, int]]:
        """Version of each part by the spec's table and the part's name; empty in old records, which did not keep it."""
        return self.manifest.versions

    @property
    def again(self) -> bool:
        """Whether the recorded spec can be run; a notebook's record does not say how models are trained."""
        return all(key in self.spec for key in ("data", "model", "forget", "train", "method"))

    @cached_property
    def rows(self) -> Mapping[Any, Json]:
        """Rows over seeds by model, attack and (metric, split)."""
        return over_seeds(self.table)

    @cached_property
    def diagnosis(self) -> list[Json]:
        """The result of each diagnostic, see `pipeline.diagnosis`; empty if none ran."""
        return read_diagnosis(self.folder, self.manifest)

    def part(self, key: str) -> Json:
        """The settings of `data`, `model` or `forget`, empty if they are not known."""
        table = self.spec.get(key)
        return table if isinstance(table, dict) else {}

    def audit(self, model: str, metric: str, split: str, attack: str | None) -> Json | None:
        """One audit of a model's verdict, none if it was not run."""
        for verdict in (v for v in self.verdicts if v["model"] == model):
            for entry in verdict["audits"]:
                if (entry["metric"], entry["split"], entry["attack"]) == (metric, split, attack):
                    return dict(entry)
        return None

    def utility(self, model: str) -> Json | None:
        """The first utility audit of a model's verdict, none if there is none."""
        for verdict in (v for v in self.verdicts if v["model"] == model):
            return next((dict(entry) for entry in verdict["audits"] if entry["role"] == "utility"), None)
        return None

    def worst(self, model: str, key: tuple[str, str]) -> Json | None:
        """The audit after the attack with the greatest residual; if no attack proves anything, the one before any."""
        audits = [self.audit(model, *key, attack) for attack in self.table.attacks]
        after = [entry for entry in audits if entry is not None and entry["proves"]]
        return max(after, key=lambda entry: float(entry["residual"]), default=self.audit(model, *key, None))

    def made(self, model: str) -> list[StageRecord]:
        """The stages that trained or unlearned a model, one per seed."""
        kinds = ("original", "reference", "unlearn")
        return [stage for stage in self.manifest.stages if stage.kind in kinds and stage.model == model]

    def cost_share(self, model: str) -> float | None:
        """Per-example gradients that made a model, as a share of a retraining's; none if either is unknown."""
        ours, theirs = (mean([stage.gradients for stage in self.made(name)]) for name in (model, REFERENCE))
        return ours / theirs if theirs and ours is not None else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of a cost over stages; none without stages, or if the cost of a stage is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
