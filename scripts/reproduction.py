"""Write REPRODUCTION.md from the results of studies that are kept in `results/`; `--add FOLDER...` keeps more.

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

from expunge.reporting.study import read_study, reproduction

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
ORDER = ("long", "cpu", "quick")


def keep(folder: Path) -> None:
    found = read_study(folder)
    name = f"{found['study']}-{found['preset']}"
    if found["preset"] not in ORDER or folder.resolve().name != name:
        sys.exit(f"{folder}: only results of a whole preset are kept, {name} here")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(spread(found) + "\n", encoding="utf-8")


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
    for folder in parser.parse_args().add:
        keep(folder)
    (ROOT / "REPRODUCTION.md").write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
