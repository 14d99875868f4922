"""The model card: the README of a folder that holds an unlearned model, written from the run's record alone. No torch.

It says how the model was made, what the verdict is and why, and what nobody has shown. It counts the examples that were
forgotten and never shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.base.manifest import NAME as MANIFEST
from expunge.base.record import file_digest
from expunge.base.terminal import one_line
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting._toml import spelled_value
from expunge.reporting.cards import MEANINGS
from expunge.reporting.record import Json, Run
from expunge.reporting.text import shown

UNIT_OF_CLAIM = {
    "method": "The verdict is about the method, over {units} seeds. This file is the model of seed {seed}.",
    "model": "The verdict is about this one model.",
    "no reference": "The verdict is about this one model.",
}
CAVEATS = (
    "A verdict is a statistical test of the audits and attacks above, each side at 5 %. It is no guarantee, and no "
    "statement about attacks that were not run.",
    "The weights are in float32, bit for bit those that were audited. In another number format, quantised, merged or "
    "trained further, this is another model: audit that one.",
)


@dataclass(frozen=True)
class Unaudited:
    """What is known about a model that no run has audited."""

    name: str
    """The spec's name."""
    spec: Mapping[str, Any]
    """The resolved spec."""
    counts: Mapping[str, int]
    """Name of a set of examples -> its size."""


def card_of(folder: Path, label: str, *, transformers: bool) -> str:
    """The card of a model of a finished run.

    Args:
        folder: The run's folder.
        label: The method's label.
        transformers: Whether the model's folder is one that transformers reads.

    Returns:
        Markdown.

    Raises:
        ExpungeError: The folder holds no finished run, or its record is damaged.
    """
    run = Run.open(folder)
    verdict = next(entry for entry in run.verdicts if entry["model"] == label)
    sections = [
        _head(run.name, label, transformers),
        _verdict(run, verdict),
        _forgotten(run.environment.get("counts"), _part(run.spec, "forget"), run, label),
        _method(run.spec, label),
        _evidence(run, verdict),
        _limits(run, verdict),
        _verification(run, label, file_digest(folder / MANIFEST)),
    ]
    return "\n\n".join(sections) + "\n"


def unaudited_card(model: Unaudited, label: str, *, transformers: bool) -> str:
    """The card of a model that was unlearned and not audited."""
    verdict = (
        "## Verdict\n\n**Not audited.** This model was unlearned, and nothing shows that it has forgotten anything. "
        "Many methods only hide knowledge, and a few steps of fine-tuning bring it back."
    )
    audit = (
        "## How to check\n\n"
        "```\nexpunge audit SPEC FOLDER    # attacks and judges this model; SPEC is the spec it was made from\n"
        "expunge verify FOLDER        # compares the files with the digests in expunge.json\n```"
    )
    sections = [
        _head(model.name, label, transformers),
        verdict,
        _forgotten(model.counts, _part(model.spec, "forget"), None, label),
        _method(model.spec, label),
        "## Limits\n\n" + _listed(CAVEATS[1:]),
        audit,
    ]
    return "\n\n".join(sections) + "\n"


def _head(name: str, label: str, transformers: bool) -> str:
    library = "library_name: transformers\n" if transformers else ""
    return (
        f"---\n{library}tags:\n- machine-unlearning\n- expunge\n---\n\n# {_plain(name)}: {_plain(label)}\n\n"
        "A model that was made to forget training examples by `expunge`, a library for machine unlearning."
    )


def _verdict(run: Run, verdict: Json) -> str:
    flags = "".join(f" Also: {flag}." for flag in verdict["flags"][1:])
    lines = [f"## Verdict\n\n**{verdict['verdict']}**. {MEANINGS[verdict['verdict']]}{flags}"]
    if not run.retrained:
        lines.append(
            "There was **no reference**: no model without the forget set could be had. Unseen examples replaced it. "
            "Such a verdict can accuse a model, and it can never say that anything is erased."
        )
    claim = "no reference" if not run.retrained else "model" if run.manifest.about_one_model else "method"
    seeds = run.manifest.seeds
    lines.append(UNIT_OF_CLAIM[claim].format(units=len(seeds), seed=seeds[0]))
    lines.append("Reasons, from the record:\n\n" + _listed(verdict["reasons"]))
    return "\n\n".join(lines)


def _forgotten(counts: Any, task: Mapping[str, Any], run: Run | None, label: str) -> str:
    lines = []
    if isinstance(counts, Mapping) and "forget" in counts:
        lines.append(f"{_count(counts['forget'], 'training example')} to forget, {counts.get('retain', '?')} to keep.")
    scored = sorted({row["n"] for row in run.table.rows() if _is_forget(row, label)}) if run else []
    if scored:
        lines.append(f"{scored[-1]} of those to forget were scored; attacks could use only the others.")
    # Only numbers: a name or a pattern among the settings may be what must be forgotten.
    settings = {key: value for key, value in task.items() if isinstance(value, int | float)}
    chosen = f"They were chosen by `{_plain(str(task.get('name', 'unknown')))}`"
    lines.append(f"{chosen}{_settings(settings)}. The examples themselves are not in this folder.")
    return "## What was forgotten\n\n" + " ".join(lines)


def _is_forget(row: Json, label: str) -> bool:
    return bool(row["model"] == label and row["split"] == "forget" and row["seed"] is not None)


def _method(spec: Mapping[str, Any], label: str) -> str:
    lines = []
    for step, entry in enumerate(_chain(spec, label)):
        settings = {k: v for k, v in entry.items() if k not in ("name", "label", "after") and v is not None}
        word = "Then" if step else "Method"
        lines.append(f"{word}: `{_plain(str(entry.get('name')))}`{_settings(settings)}.")
    return "## How it was unlearned\n\n" + ("\n\n".join(lines) or "The record does not say.")


def _chain(spec: Mapping[str, Any], label: str) -> list[Json]:
    """The methods that lead from the original to this model, the last one last."""
    entries = {entry.get("label", entry.get("name")): entry for entry in spec.get("method") or []}
    chain: list[Json] = []
    at: Any = label
    while at in entries and len(chain) < len(entries):
        chain.insert(0, entries[at])
        at = entries[at].get("after")
    return chain


def _evidence(run: Run, verdict: Json) -> str:
    lines = ["## Attacks and audits", _attacks(run)]
    table = ["| audit | after | this model | original | reference | allowed gap |", "|" + " --- |" * 6]
    for audit in verdict["audits"]:
        if audit["label"] is not None:
            continue
        key, attack = (audit["metric"], audit["split"]), audit["attack"]
        values = [run.rows.get((model, attack, key)) for model in (verdict["model"], ORIGINAL, REFERENCE)]
        cells = [shown(row["value"], row["unit"]) if row else "-" for row in values]
        margin = shown(audit["margin"], (values[0] or {}).get("unit", ""))
        table.append(
            f"| {_plain(' on '.join(key))} | {_plain(attack or 'no attack')} | {' | '.join(cells)} | {margin} |"
        )
    note = "Shares are in %."
    if run.retrained:
        note += " The reference is a model that never saw the forget set; it went through the same attacks."
    return "\n\n".join([*lines, "\n".join(table), note])


def _attacks(run: Run) -> str:
    entries: Sequence[Json] = run.spec.get("attack") or []
    if not entries:
        return "No attack was run, so dormant knowledge was not looked for."
    lines = []
    for entry in entries:
        settings = {k: v for k, v in entry.items() if k not in ("name", "label") and v is not None}
        lines.append(f"`{_plain(str(entry.get('label', entry.get('name'))))}`{_settings(settings)}")
    return "Attacks:\n\n" + _listed(lines)


def _limits(run: Run, verdict: Json) -> str:
    limits = [*CAVEATS]
    if not run.retrained:
        limits.append("Without a reference, a model that forgot and a model that never knew cannot be told apart.")
    elif len(run.manifest.seeds) < 3:
        limits.append(f"There were only {_count(len(run.manifest.seeds), 'reference')}: at least 3 are needed.")
    blind = [f"{a['metric']} on {a['split']} {'after ' + a['attack'] if a['attack'] else 'before any attack'}"
             for a in verdict["audits"] if not a["power"] and a["role"] == "knowledge"]  # fmt: skip
    if blind:
        limits.append("These audits could not have seen a small gap: " + "; ".join(map(_plain, blind)) + ".")
    return "## Limits\n\n" + _listed(limits)


def _verification(run: Run, label: str, digest: str) -> str:
    [made, *_] = run.made(label)
    weights = made.files.get("models")
    lines = [f"- run: `{_plain(run.name)}`", f"- SHA-256 of the record's `{MANIFEST}`: `{digest}`"]
    lines += [f"- SHA-256 of the audited weights in the record: `{weights.sha256}`"] if weights else []
    return (
        "## How to verify\n\n" + "\n".join(lines) + "\n\n"
        "```\nexpunge verify FOLDER        # compares the files of this folder with the digests in expunge.json\n"
        "expunge verify RECORD        # recomputes every number and the verdict from the record's scores\n"
        f"sha256sum RECORD/{MANIFEST}\n"
        "expunge audit SPEC FOLDER    # repeats attacks and audits on this folder\n```"
    )


def _part(spec: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = spec.get(key)
    return table if isinstance(table, Mapping) else {}


def _settings(settings: Mapping[str, Any]) -> str:
    words = ", ".join(f"{_plain(key)} = {_plain(spelled_value(value))}" for key, value in settings.items())
    return f" with {words}" if words else ""


def _plain(text: str) -> str:
    """Text as one line that Markdown does not take for a table or for markup of its own."""
    return one_line(text).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {one_line(line).replace('<', '&lt;')}" for line in lines)


def _count(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"
