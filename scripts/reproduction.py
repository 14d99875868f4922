"""Write REPRODUCTION.md from the results of studies that are kept in `results/`; `--add FOLDER...` keeps more.

`--judge` decides claims again, by today's rules and from the measurements that are kept. It is for results with one
error over examples, `<claim>.se`, from before there were two: it is an upper bound of both.

`results/comments.toml` holds what a person says of a claim, mostly why one did not reproduce: a table per study, a line
per claim. Everything else is measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from expunge.base import registry
from expunge.base.record import spelled
from expunge.evidence.claim import decide
from expunge.reporting.study import read_study, reproduction

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
ORDER = ("long", "cpu", "quick")


def keep(folder: Path) -> None:
    found = read_study(folder)
    name = f"{found['study'].replace(':', '.')}-{found['preset']}"
    if found["preset"] not in ORDER or folder.resolve().name != name:
        sys.exit(f"{folder}: only results of a whole preset are kept, {name} here")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(spread(found) + "\n", encoding="utf-8")


def judge(path: Path) -> None:
    found = read_study(path)
    if not any(name.endswith(".se") for entry in found["measured"].values() for name in entry):
        return
    study = registry.load("study", found["study"], where="study")
    measured = [_today(entry) for entry in found["measured"].values()]
    found["claims"] = [finding.as_json() for finding in decide(study.claims, measured)]
    found["measured"] = dict(zip(found["measured"], measured, strict=True))
    path.write_text(spread(spelled(found)) + "\n", encoding="utf-8")


def _today(measured: dict[str, Any]) -> dict[str, Any]:
    return {f"{name.removesuffix('.se')}.sampling" if name.endswith(".se") else name: v for name, v in measured.items()}


def spread(found: dict[str, Any]) -> str:
    """JSON to be read and compared by people: a line per entry, but lists of numbers on one."""
    numbers = r"\[\s+([-+.\deE,\s]+?)\s+\]"
    return re.sub(numbers, lambda one: f"[{' '.join(one[1].split())}]", json.dumps(found, indent=1))


def text() -> str:
    found = [read_study(path) for path in sorted(RESULTS.glob("*.json"))]
    path = RESULTS / "comments.toml"
    comments = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return reproduction(sorted(found, key=lambda r: (r["study"], ORDER.index(r["preset"]))), comments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", nargs="*", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--judge", action="store_true")
    chosen = parser.parse_args()
    for folder in chosen.add:
        keep(folder)
    for path in sorted(RESULTS.glob("*.json")) if chosen.judge else ():
        judge(path)
    (ROOT / "REPRODUCTION.md").write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
