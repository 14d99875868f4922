"""The resolved spec of a run: every setting, given or by default, as plain data without the place of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge.base.part import Part
from expunge.base.spec import RETRAIN
from expunge.base.spec_tables import Entry
from expunge.core.objective import Objective
from expunge.pipeline.input_files import without_places

if TYPE_CHECKING:
    from expunge.pipeline.parts import Parts


def resolved(parts: Parts) -> dict[str, Any]:
    """All settings of a run. Paths are relative to the spec's folder, see `without_places`."""
    spec, given = parts.spec, parts.spec.references

    def table(entry: Entry, part: Part, **extra: Any) -> dict[str, Any]:
        return {"name": entry.name, **part.settings(), **extra}

    def labelled(entry: Entry, part: Part, **extra: Any) -> dict[str, Any]:
        return table(entry, part, **extra) | ({"label": entry.label} if entry.label != entry.name else {})

    def adapter_of(kind: str, label: str) -> dict[str, Any] | None:
        adapter = parts.adapters.get((kind, label))
        return None if adapter is None else adapter.settings()

    def extras(entry: Entry) -> dict[str, Any]:
        return _given(budget=entry.budget, after=entry.after, adapter=adapter_of("method", entry.label))

    applied = [labelled(e, parts.augmentations[e.label]) for e in spec.augmentation]
    augmentations = {"augmentation": applied} if applied else {}
    # A spec without diagnostics must equal that of an older record, which has no such key.
    diagnostics = (
        {"diagnostic": [labelled(e, parts.diagnostics[e.label]) for e in spec.diagnostic]} if spec.diagnostic else {}
    )
    settings = {
        "name": spec.name,
        "seeds": list(spec.seeds),
        "threads": spec.threads,
        "device": parts.device.type,
        "precision": spec.precision,
        **({"one_original": True} if spec.one_original else {}),
        **({"references": list(given) if isinstance(given, tuple) else given} if given != RETRAIN else {}),
        **({"checkpointing": spec.checkpointing} if spec.checkpointing else {}),
        "gallery": spec.gallery,
        "data": table(spec.data, parts.source),
        "objective": resolved_objective(parts),
        **augmentations,
        "model": table(spec.model, parts.architecture) | ({"weights": spec.weights} if spec.weights else {}),
        "train": parts.training.settings() | _given(adapter=adapter_of("train", "")),
        "forget": table(spec.forget, parts.task),
        "method": [labelled(e, parts.methods[e.label], **extras(e)) for e in spec.method],
        "attack": [
            labelled(e, parts.attacks[e.label], **_given(adapter=adapter_of("attack", e.label))) for e in spec.attack
        ],
        "audit": [labelled(e, parts.audits[e.label], required=e.required) for e in spec.audit],
        **diagnostics,
        **({"monitor": [labelled(e, parts.monitors[e.label]) for e in spec.monitor]} if spec.monitor else {}),
        "gate": [{"method": g.method, "verdict": g.verdict} for g in spec.gate],
    }
    without: dict[str, Any] = without_places(settings, spec.folder)
    return without


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def resolved_objective(parts: Parts) -> dict[str, Any]:
    """The table of the objective, named in the spec or inferred from the data."""
    named = parts.spec.objective
    return described(parts.data.objective) | ({"name": named.name} if named else {})


def described(objective: Objective) -> dict[str, Any]:
    """Name and settings of an objective."""
    return {"name": type(objective).__module__.rpartition(".")[2], **objective.settings()}
