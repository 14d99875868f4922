"""Compare the rows of two runs, or the claims of two study results: where a number moved, and by how much.

    python scripts/same_rows.py OLD NEW [--tolerance 0]

OLD and NEW are run folders (or their `results.jsonl`) or `study.json` files. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEY = ("model", "seed", "attack", "metric", "split")
NUMBERS = ("value", "low", "high", "n", "gap")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest difference that counts as the same")
    arguments = parser.parse_args()
    old, new = numbers(arguments.old), numbers(arguments.new)
    missing, added = [key for key in old if key not in new], [key for key in new if key not in old]
    moved = [
        (key, old[key], new[key]) for key in old if key in new and not same(old[key], new[key], arguments.tolerance)
    ]
    for title, keys in (("missing", missing), ("added", added)):
        for key in keys[:20]:
            print(f"{title}: {' '.join(key)}")
    for key, before, after in moved[:40]:
        print(f"moved: {' '.join(key)}: {before!r} -> {after!r}")
    print(
        f"{len(old)} numbers before, {len(new)} after: {len(missing)} missing, {len(added)} added, {len(moved)} moved"
    )
    return 1 if missing or moved else 0


def numbers(path: Path) -> dict[tuple[str, ...], Any]:
    """Every number of a run or a study by its place."""
    if path.is_dir():
        path = path / ("results.jsonl" if (path / "results.jsonl").is_file() else "study.json")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        return {(*(str(row[k]) for k in KEY), name): row[name] for row in rows for name in NUMBERS}
    return dict(leaves(json.loads(text)["measured"], ()))


def leaves(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The numbers inside nested lists and tables."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*place, str(key)))
    else:
        yield place, value


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Equal, both NaN, or within the tolerance."""
    if isinstance(a, float | int) and isinstance(b, float | int):
        return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance
    return bool(a == b)


if __name__ == "__main__":
    raise SystemExit(main())
