"""A spec that runs in a second, the command line inside this process, and what a folder holds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from sklearn.datasets import load_digits

from expunge.cli import main

Table = dict[str, Any]


def tiny(**changes: Any) -> Table:
    """A spec of thirty short stages, with top-level keys replaced."""
    table: Table = {
        "name": "tiny",
        "seeds": [0, 1],
        "data": {"name": "digits", "train": 120, "test": 60},
        "model": {"name": "mlp", "widths": [16]},
        "train": {"epochs": 6, "learning_rate": 0.01},
        "forget": {"name": "label_swap", "count": 12},
        "method": [{"name": "random_relabel", "epochs": 2}],
        "attack": [{"name": "relearn", "epochs": 2}],
        "audit": [{"name": "loss"}],
    }
    return table | changes


def toml(table: Table, place: str = "") -> str:
    """The table as TOML; strings, numbers and lists of them look the same in JSON."""
    plain = {key: value for key, value in table.items() if not _is_nested(value)}
    blocks = ["".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())]
    for key, value in table.items():
        if _is_nested(value):
            head = f"[{place}{key}]\n" if isinstance(value, dict) else f"[[{place}{key}]]\n"
            inside = value if isinstance(value, list) else [value]
            blocks += [head + toml(inner, f"{place}{key}.") for inner in inside]
    return "\n".join(blocks)


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def write_spec(folder: Path, table: Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.toml"
    path.write_text(toml(table), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def message(self) -> str:
        """The one message that a failure prints, as the last thing that it says."""
        lines = self.err.splitlines()
        assert "Traceback" not in self.err, self.err
        assert [line.startswith("expunge: ") for line in lines].count(True) == 1, self.err
        assert lines[-1].startswith("expunge: "), self.err
        return lines[-1]


def cli(*arguments: object) -> Result:
    """Run the console script's function in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["expunge", *map(str, arguments)]
    code: Any = 0
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
    return Result(code, out.getvalue(), err.getvalue())


def run(table: Table, out: Path, *arguments: object) -> Result:
    """`expunge run` in this process, with the spec beside the runs' folder."""
    return cli("run", write_spec(out.parent, table), "--out", out, "--workers", 1, *arguments)


def finished(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder with its digest and the time of its last change."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without those that note times."""
    timed = ("stage.json", "events.jsonl", "manifest.json", "env.json", "report.html")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in timed
    }


def temporaries(folder: Path) -> list[Path]:
    """What an interrupted write would have left."""
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def stages_done(out: Path) -> set[str]:
    return {path.parent.name for path in (out / "cache").glob("*/stage.json")}


def wrong_digits(folder: Path, forget: int, train: int, test: int) -> tuple[np.ndarray, np.ndarray]:
    """`own.npz`, digits of which the first have wrong labels, and `forget.txt` that names these; all `x` and `y`."""
    images, labels = load_digits(return_X_y=True)
    x, y = images.astype(np.float32) / 16, labels.astype(np.int64)
    y[:forget] = (y[:forget] + 1 + np.arange(forget) % 9) % 10
    end = train + test
    np.savez(folder / "own.npz", x=x[:train], y=y[:train], tx=x[train:end], ty=y[train:end])
    (folder / "forget.txt").write_text("\n".join(map(str, range(forget))))
    return x, y
