"""The page's diagnosis: what diagnostics predicted before the unlearning, beside what the run then measured."""

from __future__ import annotations

from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting._toml import toml
from expunge.reporting.record import NAMES, Json, Run
from expunge.reporting.tables import cell, unit_sign
from expunge.reporting.text import curve_key

MEASURED = {ORIGINAL: NAMES[ORIGINAL], REFERENCE: NAMES[REFERENCE], "range": "range: original minus retrained"}
"""What a diagnostic can predict, see `Diagnostic.predicts` -> its name on the page."""


def diagnosis(run: Run) -> list[Json]:
    """For each diagnostic its label, its sentence and a line per estimate; empty if no diagnostic ran."""
    return [_of_diagnostic(run, entry) for entry in run.diagnosis]


def _of_diagnostic(run: Run, entry: Json) -> Json:
    means = [row for row in entry["rows"] if row["seed"] is None]
    seeds = {row["seed"] for row in entry["rows"]} - {None}
    lines = [{"what": row["what"], "unit": unit_sign(row["unit"])} | _compared(run, row) for row in means]
    facts = {"diagnostic": entry["diagnostic"], "sentence": entry["sentence"], "seeds": len(seeds), "lines": lines}
    # Older records have no proposal.
    return facts | {"proposal": toml({"method": entry["proposal"]}) if entry.get("proposal") else ""}


def _compared(run: Run, row: Json) -> Json:
    predicts = row["predicts"]
    measured = _measured(run, predicts) if predicts else None
    of = MEASURED.get(predicts, "") if measured else ""
    return {"predicted": cell(_numbers(row)), "measured": cell(measured), "of": of}


def _measured(run: Run, what: str) -> Json | None:
    """The run's own measurement of what a diagnostic predicted, as a row; none if the run did not measure it."""
    key = curve_key(run.table)
    if what in (ORIGINAL, REFERENCE):
        return run.rows.get((what, None, key))
    audit = run.audit(run.methods[0], *key, None) if what == "range" and run.methods and run.retrained else None
    if audit is None:
        return None
    return _numbers({"value": audit["range"], "low": audit["range_low"], "high": audit["range_high"], "unit": "share"})


def _numbers(row: Json) -> Json:
    """The row with its numbers as floats; JSON holds NaN and infinities as strings."""
    return row | {name: float(row[name]) for name in ("value", "low", "high")}
