"""`expunge --help` as a whole process (aim: 0.3 s), against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks._ratio import compare

AIM = 0.3


def main(repeats: int = 9) -> None:
    command = [str(Path(sys.executable).with_name("expunge")), "--help"]
    nothing = [sys.executable, "-c", "pass"]
    ratio = compare(lambda: _run(command), lambda: _run(nothing), repeats)
    print(f"--help      {ratio.ours:.3f} s, aim {AIM} s; {ratio.best:.1f} times an empty interpreter")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
