"""The counts of the campaign as a file, and as the table of the page; no number of the page is typed by hand."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from campaign import KINDS
from campaign.count import FAULTS, Tally
from expunge.base.record import locked

MARKS = re.compile(r"(<!-- counts: begin -->\n).*(<!-- counts: end -->)", re.DOTALL)


def added(path: Path, kind: str, tally: Tally) -> None:
    """Add the counts of one kind to those in the file; parts of the campaign may run side by side."""
    with locked(path.parent):
        table = json.loads(path.read_text()) if path.exists() else {"kinds": {}}
        held, counts = table["kinds"].setdefault(kind, {"rows": {}, "seconds": 0}), tally.as_json()
        for row, numbers in counts["rows"].items():
            old = held["rows"].setdefault(row, {})
            held["rows"][row] = {name: old.get(name, 0) + numbers.get(name, 0) for name in ("tried", *FAULTS)}
        held["seconds"] += counts["seconds"]
        table |= {"commit": _commit(), "date": datetime.now(UTC).date().isoformat()}
        path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def text(table: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    lines = [f"| what | attempts | {' | '.join(FAULTS)} |", "|" + " --- |" * (2 + len(FAULTS))]
    rows = {row: numbers for kind in sorted(table["kinds"]) for row, numbers in table["kinds"][kind]["rows"].items()}
    for row, numbers in rows.items():
        lines.append(f"| {row} | {numbers['tried']:,} | {' | '.join(str(numbers[name]) for name in FAULTS)} |")
    totals = {name: sum(numbers[name] for numbers in rows.values()) for name in ("tried", *FAULTS)}
    lines.append(f"| **all** | {totals['tried']:,} | {' | '.join(str(totals[name]) for name in FAULTS)} |")
    made = {name: sum(row["tried"] for row in held["rows"].values()) for name, held in table["kinds"].items()}
    shares = ", ".join(f"{name} {made.get(name, 0):,} of {kind.full:,}" for name, kind in KINDS.items())
    lines += ["", f"Attempts of the full campaign that these counts hold: {shares}."]
    seconds = sum(kind["seconds"] for kind in table["kinds"].values())
    lines += [
        "",
        f"Commit `{table['commit']}`, {table['date']}; {seconds / 60:.0f} minutes of one core in this process.",
    ]
    return "\n".join(lines) + "\n"


def write_page(counts: Path, page: Path) -> None:
    """Put the table between the marks of the page."""
    table = text(json.loads(counts.read_text()))
    page.write_text(MARKS.sub(lambda match: match[1] + table + match[2], page.read_text()))


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
