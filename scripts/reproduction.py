"""Write REPRODUCTION.md from the results of studies that are kept in `results/`; `--add FOLDER...` keeps more.

`results/comments.toml` holds what a person says of a claim, mostly why one did not reproduce: a table per study, a line
per claim. Everything else is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path

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
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


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
