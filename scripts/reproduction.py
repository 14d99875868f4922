"""Write REPRODUCTION.md from the results of studies that are kept in `results/`; `--add FOLDER...` keeps more."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from expunge.reporting.study import read_study, reproduction

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
ORDER = ("long", "cpu", "quick")


def keep(folder: Path) -> None:
    found = read_study(folder)
    (RESULTS / f"{found['study']}-{found['preset']}.json").write_text(
        json.dumps(found, indent=1) + "\n", encoding="utf-8"
    )


def text() -> str:
    found = [read_study(path) for path in sorted(RESULTS.glob("*.json"))]
    return reproduction(sorted(found, key=lambda r: (r["study"], ORDER.index(r["preset"]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", nargs="*", type=Path, default=[], metavar="FOLDER")
    for folder in parser.parse_args().add:
        keep(folder)
    (ROOT / "REPRODUCTION.md").write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
