"""Altered records: every file, with and without digests made to fit, and paths that lead elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _mutations import HOSTILE, flipped, mutated, places

from campaign.count import BELIEVED, Faults, Kind, row
from campaign.project import answered, cli, finished, limited, outside, rerun, small, undisturbed, watched
from expunge.base.errors import ExpungeError
from expunge.evidence import scores
from expunge.evidence.table import verdicts_text
from expunge.reporting.record import Run

CHANGES = {"gallery": True, "name": "tiny"}


@dataclass
class Genuine:
    """A finished record, and what its readers print."""

    folder: Path
    rows: str
    verdicts: str
    verified: dict[str, Any]


def _prepare(folder: Path) -> Genuine:
    record = undisturbed(folder, **CHANGES) / "tiny"
    finished(cli("report", record))
    rows, verdicts = _shown(record)
    return Genuine(record, rows, verdicts, json.loads(finished(cli("verify", record, "--json")).out))


def _shown(record: Path) -> tuple[str, str]:
    """Rows and verdicts as every reader of a record has them."""
    run = Run.open(record)
    return json.dumps(run.table.rows(), default=str), verdicts_text(run.table)


def _attempt(genuine: Genuine, number: int, rng: random.Random, folder: Path) -> Faults:
    kind = ("byte", "value", "fitted byte", "fitted value", "results", "path")[number % 6]
    yield row(f"record: {NAMES[kind]}")
    record = folder / "tiny"
    shutil.copytree(genuine.folder, record)
    elsewhere = outside(folder)
    names = sorted(str(p.relative_to(record)) for p in record.rglob("*") if p.is_file())
    listed = {*json.loads((record / "manifest.json").read_text())["files"], *_files(record)}
    if kind == "path":
        name = _led_elsewhere(record, elsewhere, rng)
    elif kind == "results":
        name = _forged_result(record, rng)
    else:
        name = rng.choice([n for n in names if n not in ("report.html", "events.jsonl")])
        _altered(record, name, rng, values="value" in kind)
        if "fitted" in kind:
            _fit(record, name)
    ours, theirs = record / name, genuine.folder / name
    differs = theirs.is_file() and (not ours.is_file() or ours.read_bytes() != theirs.read_bytes())
    what = f"{kind} in {name}"
    with watched(folder, "tiny", "compare.html") as changes:
        verified = limited("verify", record)
        yield from answered(verified, (0, 2, 4), f"verify, {what}")
        for arguments in (("report", record), ("report", "--leaderboard", record), ("compare", genuine.folder, record)):
            out = ("--out", folder / "compare.html") if arguments[0] == "compare" else ()
            yield from answered(limited(*arguments, *out), (0, 2, 4), f"{arguments[0]}, {what}")
    yield from changes
    unfitted = kind in ("byte", "value") and name in listed
    if differs and unfitted and verified is not None and verified.code == 0:
        yield BELIEVED, f"verify agrees with {what}"
    yield from _believed(genuine, record, what)
    if number % 18 < 6:  # a third of them, because it takes a second
        (folder / "runs").mkdir()
        record.rename(folder / "runs" / "tiny")
        with watched(folder, "runs", "spec.toml") as changes:
            yield from answered(rerun(folder, small(**CHANGES)), (0, 2, 4), f"a run in the folder, {what}")
        yield from changes


NAMES = {
    "byte": "changed bytes of any file",
    "value": "changed values of any file",
    "fitted byte": "changed bytes, digests made to fit",
    "fitted value": "changed values, digests made to fit",
    "results": "forged rows, verdicts and scores, digests made to fit",
    "path": "paths, links, pipes and folders in place of files",
}


def _believed(genuine: Genuine, record: Path, what: str) -> Faults:
    """A record that is read has the rows and verdicts of the genuine one, unless all of it fits together."""
    try:
        shown = _shown(record)
    except ExpungeError:
        return
    except Exception:
        return  # the readers above have shown this failure
    manifest = json.loads((record / "manifest.json").read_text())
    before = json.loads((genuine.folder / "manifest.json").read_text())
    same = ("models", "seeds", "attacks", "required", "about_one_model", "training", "rules", "format")
    if shown != (genuine.rows, genuine.verdicts) and all(manifest.get(k) == before[k] for k in same):
        yield BELIEVED, f"other rows or verdicts are shown: {what}"


def _files(record: Path) -> set[str]:
    stages = json.loads((record / "manifest.json").read_text())["stages"]
    return {file["path"] for stage in stages for file in stage["files"].values()}


def _altered(record: Path, name: str, rng: random.Random, *, values: bool) -> None:
    path = record / name
    content = path.read_bytes()
    if values and name.endswith(".json"):
        table = json.loads(content)
        changed = mutated({"": table}, rng).get("") if not isinstance(table, dict) else mutated(table, rng)
        path.write_text(json.dumps(changed, default=str))
    elif values and name.endswith(".jsonl"):
        lines = [json.loads(line) for line in content.decode().splitlines()]
        at = rng.randrange(len(lines))
        lines[at] = mutated(lines[at], rng)
        path.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines))
    elif values and name.startswith("scores/"):
        _other_scores(path, rng)
    else:
        path.write_bytes(flipped(content, rng))


def _other_scores(path: Path, rng: random.Random) -> None:
    held = scores.loads(path.read_bytes())
    at = rng.randrange(len(held))
    values = np.array(held[at].values, dtype=float)
    values[rng.randrange(len(values))] += rng.choice([1.0, -1.0, 1e-3, float("nan"), 1e300])
    held[at] = scores.Scores(**{**vars(held[at]), "values": values})
    path.write_bytes(scores.dumps(held))


def _fit(record: Path, *names: str) -> None:
    """Make the digests of the manifest fit, as a forger would."""
    try:
        manifest = json.loads((record / "manifest.json").read_text())
        for name in names:
            digest = hashlib.sha256((record / name).read_bytes()).hexdigest()
            if name in manifest["files"]:
                manifest["files"][name] = digest
            for stage in manifest["stages"]:
                for file in stage["files"].values():
                    file["sha256"] = digest if file["path"] == name else file["sha256"]
        (record / "manifest.json").write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # the manifest itself was altered


def _forged_result(record: Path, rng: random.Random) -> str:
    """A better number, verdict or score, with all digests made to fit."""
    name = rng.choice(
        ["verdicts.json", "results.jsonl", rng.choice(sorted(n for n in _files(record) if "scores/" in n))]
    )
    path = record / name
    if name == "verdicts.json":
        table = json.loads(path.read_text())
        at = rng.choice([p for p in places(table) if p and not isinstance(_at(table, p), dict | list)])
        *outer, last = at
        old = _at(table, at)
        if at[-1] == "reasons" or "reasons" in at:  # their words are not taken from the record
            at, outer, last, old = (0, "verdict"), [0], "verdict", table[0]["verdict"]
        new = rng.choice(["erased", 0.0, -1.0, None, True, *HOSTILE[:6]])
        _at(table, tuple(outer))[last] = new if new != old or type(new) is not type(old) else "forged"
        path.write_text(json.dumps(table, default=str))
    elif name == "results.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[rng.randrange(len(lines))][rng.choice(["value", "low", "high", "n"])] = rng.choice([0.123, -7, None])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        _other_scores(path, rng)
    _fit(record, name)
    return name


def _at(table: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        table = table[key]
    return table


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, elsewhere: path.symlink_to(elsewhere / "scores.safetensors"),
    "link to a device": lambda path, elsewhere: path.symlink_to("/dev/zero"),
    "link to itself": lambda path, elsewhere: path.symlink_to(path.name),
    "pipe": lambda path, elsewhere: os.mkfifo(path),
    "folder": lambda path, elsewhere: path.mkdir(),
    "hard link": lambda path, elsewhere: os.link(elsewhere / "kept.txt", path),
}
WRITTEN = ("report.html", "events.jsonl", "scores", "curves", "models", "diagnosis", "examples")
"""What readers and runs write."""


def _led_elsewhere(record: Path, elsewhere: Path, rng: random.Random) -> str:
    how = rng.choice(["manifest", "planted", "planted", "folder", "written"])
    if how == "manifest":
        manifest = json.loads((record / "manifest.json").read_text())
        file = rng.choice([f for stage in manifest["stages"] for f in stage["files"].values()])
        file["path"] = rng.choice(
            [f"{elsewhere}/kept.txt", "../outside/kept.txt", "scores/../../outside/kept.txt", "/etc/passwd", "/dev/zero",
             "", ".", "a\0b", "scores", "\ud800", "C:\\x", "a" * 5000, file["path"] + "/", "./" + file["path"]]
        )  # fmt: skip
        (record / "manifest.json").write_text(json.dumps(manifest))
        return "manifest.json"
    if how == "folder":
        name = rng.choice(sorted(p.name for p in record.iterdir() if p.is_dir()))
        moved = elsewhere / name
        shutil.move(record / name, moved)
        (record / name).symlink_to(rng.choice([elsewhere, moved]))
        return name
    name = rng.choice(WRITTEN) if how == "written" else rng.choice(sorted(_files(record) | {*TOP}))
    path = record / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    PLANTED[rng.choice(sorted(PLANTED))](path, elsewhere)
    return name


TOP = ("manifest.json", "spec.json", "env.json", "results.jsonl", "verdicts.json", "diagnosis.json")

KIND = Kind("forgeries", 240, (1, 8, 15, 22, 23), _prepare, _attempt)
