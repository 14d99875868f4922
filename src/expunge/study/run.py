"""Run a study: first the part that seeds share, then the seeds side by side, then the decision; results are kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.base import registry
from expunge.base.errors import RunError, SpecError, unknown
from expunge.base.reading import read_inside, refuse_links
from expunge.base.record import (
    address,
    make_private,
    remove,
    sealed,
    spelled,
    storage_error,
    sweep,
    unsealed,
    write_file,
)
from expunge.base.store import RERUN
from expunge.base.user_code import source_digest
from expunge.core.seeding import forked
from expunge.evidence.claim import decide
from expunge.pipeline.executor import Computation, executor_of
from expunge.pipeline.folder import environment
from expunge.reporting.names import PRESETS
from expunge.reporting.progress import Progress
from expunge.reporting.study import write_study_page
from expunge.study.study import Study, Work, at_preset

FOLDER = "studies"
RESULT = "study.json"
_KEYS = {"key", "seconds", "measured"}
"""What the file of a seed holds."""


def run_study(
    name: str,
    preset: str,
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    workers: int = 1,
    on: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure a study's claims, or complete an earlier run.

    Args:
        name: The study.
        preset: Its scale.
        out: Folder for runs; the study goes to `out/studies/<name>-<preset>`.
        seeds: Replace the preset's seeds.
        workers: Number of processes; the numbers do not depend on it.
        on: Name of the executor that runs the seeds and the pipeline's stages, or `module:Class`; see `pipeline.run`.
        progress: Reports each seed that finishes; silent by default.

    Returns:
        The folder, with `study.json` and `report.html`.

    Raises:
        SpecError: There is no such study, preset or seed.
        MissingError: The preset needs something that this machine does not have.
        RunError: A seed failed; the results of the others are kept.
    """
    study, chosen, folder = _scaled(name, preset, out, seeds)
    executor_of(on, workers)  # refuse a wrong name before anything is written
    work = Work(folder.parent, folder.name, workers, progress, pages=preset != "quick", on=on)
    _make(work.folder)
    start, load = time.perf_counter(), os.getloadavg()[0]
    basis = dict(study.prepare(chosen, work))
    measured = _measured(study, chosen, work, basis)
    result = {
        "study": name,
        "preset": preset,
        "paper": study.paper,
        "seeds": list(chosen),
        "seconds": round(time.perf_counter() - start, 1),
        "spent": round(sum(entry["seconds"] for entry in measured.values()) + work.spent(), 1),
        "load": round(load, 2),
        "workers": workers,
        "commit": environment()["commit"],
        "environment": environment(),
        "settings": study.settings(),
        "basis": basis,
        "claims": [f.as_json() for f in decide(study.claims, [e["measured"] for e in measured.values()])],
        "measured": {str(seed): entry["measured"] for seed, entry in measured.items()},
        "figures": [f.as_json() for f in study.figures({s: e["measured"] for s, e in measured.items()}, basis)],
    }
    write_file(work.folder / RESULT, json.dumps(spelled(_plain(result)), indent=1, allow_nan=False) + "\n")
    write_study_page(work.folder)
    return work.folder


def planned(name: str, preset: str, out: Path, *, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """What a study would do, as `expunge study --dry-run` prints it. Nothing is computed or written.

    Raises:
        SpecError: There is no such study, preset or seed.
        MissingError: The preset needs something that this machine does not have.
    """
    study, chosen, folder = _scaled(name, preset, out, seeds)
    return {
        "study": name,
        "status": "planned",
        "preset": preset,
        "takes": PRESETS.get(preset, ""),
        "seeds": list(chosen),
        "stored": [seed for seed in chosen if (folder / _name(seed)).is_file()],
        "claims": len(study.claims),
        "primary": sum(claim.primary for claim in study.claims),
        "folder": str(folder),
    }


def _scaled(name: str, preset: str, out: Path, seeds: Sequence[int] | None) -> tuple[Study, tuple[int, ...], Path]:
    """The study at its scale, its seeds and its folder."""
    study_class = registry.load("study", name, where="study")
    if not (isinstance(study_class, type) and issubclass(study_class, Study)):
        raise unknown("study", name, registry.names("study"), where="study")
    study, scale = at_preset(study_class, preset)
    chosen = _distinct(scale.seeds if seeds is None else tuple(seeds))
    label = f"{name.replace(':', '.')}-{preset}" + ("" if chosen == scale.seeds else "-s" + "-".join(map(str, chosen)))
    return study, chosen, out / FOLDER / label


def _make(folder: Path) -> None:
    """Make the study's folder, without an earlier result: none must remain if this run fails."""
    make_private(folder)
    refuse_links(folder)
    sweep(folder)
    for path in (folder / RESULT, folder / "report.html"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from None


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise SpecError(f"found {list(seeds)}", where="--seed", allowed="whole numbers from 0, each once")
    return seeds


def _measured(study: Study, seeds: Sequence[int], work: Work, basis: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Each seed's results. A file with the same key is reused; a study that only reads runs always reads again."""
    code = source_digest(type(study))
    facts = {"study": study.fingerprint(), "code": code, "basis": basis, "torch": torch.__version__}
    keys = {seed: address({**facts, "seed": seed}) for seed in seeds}
    missing = [s for s in seeds if not study.side_by_side or _undamaged(work, s).get("key") != keys[s]]
    if (work.on or work.workers > 1) and len(missing) > 1 and study.side_by_side:
        _on_executor(study, missing, work, basis, keys)
    else:
        for seed in missing:
            _measure(study, seed, work, basis, keys[seed])
            _report(work, seed)
    return {seed: _stored(work, seed) for seed in seeds}


def _on_executor(
    study: Study, seeds: Sequence[int], work: Work, basis: Mapping[str, Any], keys: Mapping[int, str]
) -> None:
    alone = replace(work, workers=1, progress=None, on=None)
    tasks = [Computation(str(seed), _measure, (study, seed, alone, basis, keys[seed])) for seed in seeds]
    executor_of(work.on, work.workers).run(tasks, lambda task: None, lambda task, _: _report(work, int(task.key)))


def _measure(study: Study, seed: int, work: Work, basis: Mapping[str, Any], key: str) -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    with forked(seed):
        measured = _plain(dict(study.measure(seed, work, basis)))
    seconds = round(time.perf_counter() - start, 2)
    entry = spelled({"key": key, "seconds": seconds, "measured": measured})
    write_file(work.folder / _name(seed), sealed(entry) + "\n")


def _name(seed: int) -> str:
    return f"seeds/{seed}.json"


def _undamaged(work: Work, seed: int) -> dict[str, Any]:
    """A seed's stored entry; empty if there is none. A damaged one is removed, and a line says so."""
    path = work.folder / _name(seed)
    if not os.path.lexists(path):
        return {}
    try:
        return _stored(work, seed)
    except RunError as error:
        (work.progress or Progress()).say(f"damaged result of seed {seed}: {error.finding} ({path}); measured again")
    remove(path)
    return {}


def _stored(work: Work, seed: int) -> dict[str, Any]:
    """A seed's stored entry.

    Raises:
        RunError: It is missing, cannot be read, or has changed since it was measured.
    """
    finding = "it holds other keys than a result"
    try:
        entry = unsealed(read_inside(work.folder, _name(seed)))
        if entry.keys() == _KEYS:
            return entry
    except (ValueError, RecursionError) as error:
        finding = f"the file is damaged ({error})"
    raise RunError(finding, where=str(work.folder / _name(seed)), remedy=RERUN)


def _report(work: Work, seed: int) -> None:
    if work.progress is not None:
        work.progress.say(f"seed {seed}: {_stored(work, seed)['seconds']:.1f} s")


def _plain(value: Any) -> Any:
    """A value with arrays as lists, and with NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
