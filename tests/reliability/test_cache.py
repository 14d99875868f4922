"""A cache that believes nothing that it has not checked: damage, twins, changing inputs, interrupted records, places.

Each test is one kind of fault. Its parameters are the instance that was reported and neighbours that were not.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.utils.data import TensorDataset

import expunge
from expunge.api.addresses import addresses_of
from expunge.api.home import CaseHome, home_of
from expunge.api.plan import CasePlan, spec_of
from expunge.base import record, registry
from expunge.base.errors import RunError
from expunge.base.spec import parse, read
from expunge.core import checkpoint
from expunge.data import fashion_mnist
from expunge.data.arrays import Arrays
from expunge.pipeline import folder as run_folder
from expunge.pipeline import outstanding, schedule
from expunge.pipeline.executor import Computation, Executor
from expunge.pipeline.plan import Plan
from expunge.pipeline.schedule import run_stages
from expunge.tasks import indices
from helpers import Result, Table, cli, contents, finished, run, stages_done, temporaries, tiny, toml, wrong_digits

try:
    from expunge.base.store import Store
except ImportError:  # so that the tests can be tried on the commit before
    from expunge.base.record import Store  # type: ignore[attr-defined, no-redef]


def two_seeds(**changes: Any) -> Table:
    """Stages of every kind that a run may have: statistics, originals, references, methods, attacks, audits."""
    return tiny(forget={"name": "hard_examples", "count": 10, "nets": 2}, **changes)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for runs after one run that nothing disturbed."""
    out = tmp_path_factory.mktemp("clean") / "runs"
    finished(run(two_seeds(), out))
    return out


@pytest.fixture
def out(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean folder, without the record."""
    copy = tmp_path / "runs"
    shutil.copytree(clean, copy)
    shutil.rmtree(copy / "tiny")
    return copy


def entry(out: Path, name: str) -> Path:
    """The folder of the output of the stage with this name."""
    named = (path.parent for path in (out / "cache").glob("*/stage.json") if stage_of(path) == name)
    return next(named)


def stage_of(facts: Path) -> str:
    return str(json.loads(facts.read_text())["stage"])


def flip(path: Path, place: int = -1) -> None:
    """Flip one bit of a file, in place."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def computed(out: Path) -> set[str]:
    """Names of the stages that the last run has computed."""
    return {json.loads(line)["what"] for line in (out / "tiny" / "events.jsonl").read_text().splitlines()}


# 18, 19: outputs that are damaged, and outputs that are missing or cannot be read


ORIGINAL, UNLEARNED = "seed 0: original", "seed 1: unlearn random_relabel"
ATTACK, AUDIT = "seed 0: attack random_relabel relearn", "seed 1: audit reference loss after relearn"
STATISTICS = "measure measure"


def weights_of(out: Path, stage: str) -> Path:
    return entry(out, stage) / "weights.safetensors"


def swapped(out: Path) -> None:
    """Each folder is consistent, and in the place of the other."""
    first, second = entry(out, "seed 0: original"), entry(out, "seed 1: original")
    aside = first.with_name("aside")
    first.rename(aside), second.rename(first), aside.rename(second)


def other_numbers(out: Path) -> None:
    """Weights of another model, in a valid file of the same size."""
    path = weights_of(out, "seed 0: reference")
    tensors = load_file(path)
    save_file({name: tensor * np.float32(1.01) for name, tensor in tensors.items()}, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of an original's weights": lambda out: flip(weights_of(out, ORIGINAL)),
    "a bit of a method's weights": lambda out: flip(weights_of(out, UNLEARNED), 400),
    "a bit of the statistics": lambda out: flip(entry(out, STATISTICS) / "measured.safetensors"),
    "a bit of attacked weights": lambda out: flip(weights_of(out, ATTACK)),
    "other weights": other_numbers,
    "a byte more of a curve": lambda out: longer(entry(out, ATTACK) / "curve.safetensors"),
    "a byte less of scores": lambda out: cut(entry(out, AUDIT) / "scores.safetensors"),
    "two outputs in each other's place": swapped,
}


def in_place_of(path: Path, kind: str) -> None:
    """Put something else in the place of a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_name("stage.json"))
    elif kind == "file":
        path.write_text("mine")


def facts_with(out: Path, stage: str, **changes: Any) -> None:
    path = entry(out, stage) / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def linked(out: Path, stage: str) -> None:
    """A whole output elsewhere, where others may change it."""
    path = entry(out, stage)
    path.rename(out.parent / "elsewhere")
    path.symlink_to(out.parent / "elsewhere")


MISSING: dict[str, Callable[[Path], object]] = {
    "scores of one audit": lambda out: (entry(out, AUDIT) / "scores.safetensors").unlink(),
    "scores of an attack": lambda out: (entry(out, ATTACK) / "scores.safetensors").unlink(),
    "no stage.json": lambda out: (entry(out, UNLEARNED) / "stage.json").unlink(),
    "stage.json is cut": lambda out: cut(entry(out, ORIGINAL) / "stage.json"),
    "stage.json is empty": lambda out: (entry(out, STATISTICS) / "stage.json").write_text(""),
    "stage.json is a list": lambda out: (entry(out, AUDIT) / "stage.json").write_text("[1]"),
    "stage.json is deep": lambda out: (entry(out, AUDIT) / "stage.json").write_text("[" * 100_000),
    "stage.json is no text": lambda out: (entry(out, AUDIT) / "stage.json").write_bytes(b"\xff\xfe\x00"),
    "stage.json has no number": lambda out: facts_with(out, ORIGINAL, seconds="long"),
    "stage.json has a huge number": lambda out: (entry(out, ORIGINAL) / "stage.json").write_text(
        (entry(out, ORIGINAL) / "stage.json").read_text().replace('"gradients":', '"gradients":' + "9" * 5000)
    ),
    "stage.json names another cost": lambda out: facts_with(out, UNLEARNED, gradients=1),
    "stage.json names another time": lambda out: facts_with(out, AUDIT, seconds=0.5),
    "stage.json says that nothing changed": lambda out: facts_with(out, UNLEARNED, changed=False),
    "the output is a link": lambda out: linked(out, AUDIT),
    "stage.json names fewer files": lambda out: facts_with(out, ATTACK, files={}),
    "stage.json is a folder": lambda out: in_place_of(entry(out, ORIGINAL) / "stage.json", "folder"),
    "weights are a folder": lambda out: in_place_of(weights_of(out, UNLEARNED), "folder"),
    "weights are a pipe": lambda out: in_place_of(weights_of(out, UNLEARNED), "pipe"),
    "scores are a link": lambda out: in_place_of(entry(out, AUDIT) / "scores.safetensors", "link"),
    "the output is a file": lambda out: in_place_of(entry(out, AUDIT), "file"),
    "the output is empty": lambda out: in_place_of(entry(out, ORIGINAL), "folder"),
}


def ends_right(out: Path, clean: Path) -> None:
    """Another run ends with the bytes of the undisturbed one, says in one line what it found, and leaves nothing."""
    result = finished(run(two_seeds(), out))
    assert contents(out) == contents(clean)
    assert [line.startswith("damaged output of ") for line in result.err.splitlines()].count(True) == 1, result.err
    assert "Traceback" not in result.err and "computed again" in result.err
    assert finished(cli("verify", out / "tiny")).code == 0
    again = finished(run(two_seeds(), out))
    assert "damaged output" not in again.err and "31 of 31 stages are already done" in again.err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_output_is_computed_again(damage: str, out: Path, clean: Path) -> None:
    DAMAGES[damage](out)
    ends_right(out, clean)


@pytest.mark.parametrize("damage", MISSING)
def test_an_output_that_is_missing_or_cannot_be_read_is_computed_again(damage: str, out: Path, clean: Path) -> None:
    MISSING[damage](out)
    ends_right(out, clean)


@pytest.mark.parametrize("stage", [ORIGINAL, STATISTICS, UNLEARNED, ATTACK])
@pytest.mark.parametrize("harm", ["damaged", "deleted"])
def test_all_that_followed_from_it_is_computed_again(stage: str, harm: str, out: Path, clean: Path) -> None:
    """It may have been computed from the damaged output."""
    plan = Plan(parse(two_seeds(), out))
    harmed = {s.key for s in plan.stages if s.name == stage}
    for later in plan.stages:
        harmed |= {later.key} if harmed & set(later.needs) else set()
    flip(next(entry(out, stage).glob("*.safetensors"))) if harm == "damaged" else shutil.rmtree(entry(out, stage))
    finished(run(two_seeds(), out))
    assert computed(out) == {s.name for s in plan.stages if s.key in harmed}
    assert contents(out) == contents(clean)


def test_a_dry_run_says_what_is_damaged_is_to_be_done_and_changes_nothing(out: Path) -> None:
    flip(weights_of(out, ORIGINAL))
    before = contents(out)
    said = json.loads(finished(run(two_seeds(), out, "--dry-run", "--json")).out)["stages"]
    assert {s["stage"] for s in said if not s["done"]} > {ORIGINAL, ATTACK} and contents(out) == before


def test_damage_during_a_run_ends_it_and_the_next_one_mends_it(
    out: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two audits read the same weights, which are damaged between the two."""
    attacked = weights_of(out, "seed 1: attack reference relearn")
    for audit in (AUDIT, AUDIT.replace("loss", "performance")):
        shutil.rmtree(entry(out, audit))
    restore = checkpoint.restore

    def damaging(*arguments: Any) -> Any:
        attacked.write_bytes(b"damaged")
        return restore(*arguments)

    monkeypatch.setattr(checkpoint, "restore", damaging)
    first = run(two_seeds(), out)
    monkeypatch.undo()
    assert first.code == 4 and f"{attacked}: the file has changed" in first.message()
    assert "run the same again" in first.message() and not (out / "tiny" / "manifest.json").exists()
    finished(run(two_seeds(), out))
    assert contents(out) == contents(clean)


# 18: records that share bytes with the cache


@pytest.mark.parametrize("kind", ["models", "scores", "curves", "diagnosis"])
def test_a_record_that_is_edited_does_not_reach_the_cache(kind: str, tmp_path: Path) -> None:
    table = tiny(seeds=[0], diagnostic=[{"name": "sharpness"}])
    out = tmp_path / "runs"
    finished(run(table, out))
    before = contents(out)
    for path in sorted((out / "tiny" / kind).iterdir()):
        flip(path)
    changed = contents(out)
    assert {name.split("/")[1] for name in before if changed[name] != before[name]} == {kind}
    result = finished(run(table, out))
    assert contents(out) == before and "damaged" not in result.err


# 20: two runs at once


def meanwhile(monkeypatch: pytest.MonkeyPatch, call: int, act: Callable[[], object]) -> None:
    """Do something, once, in the middle of the store's work: just before one of its renamings."""
    rename, calls = os.replace, iter(range(1000))

    def renaming(source: Any, target: Any) -> None:
        if next(calls) == call:
            act()
        rename(source, target)

    monkeypatch.setattr(os, "replace", renaming)


KEY, FACTS = "0" * 32, {"stage": "a", "seconds": 1.5, "gradients": 3}
FILES = {"a.bin": b"a" * 9, "b.bin": b"b" * 9}


def opened(root: Path) -> Store:
    """The store as another run opens it."""
    store = Store(root)
    store.open() if hasattr(store, "open") else store.sweep()
    return store


def stopped(root: Path) -> None:
    """Another run's write that fails in the middle."""

    def full(*_: object) -> None:
        raise OSError(28, "full")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError):
        patch.setattr(os, "fsync", full)
        Store(root).put(KEY, FILES, FACTS)


TWINS: dict[str, Callable[[Path], object]] = {
    "it sweeps": lambda root: opened(root),
    "it stores the same output": lambda root: Store(root).put(KEY, FILES, FACTS),
    "it stores the same output and sweeps": lambda root: opened(root).put(KEY, FILES, FACTS),
    "its write of the same output fails": stopped,
}


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("twin", TWINS)
def test_a_run_with_the_same_process_id_disturbs_no_other(
    twin: str, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers that share a folder, where both are process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    root = tmp_path / "cache"
    root.mkdir()
    meanwhile(monkeypatch, moment, lambda: TWINS[twin](root))
    Store(root).put(KEY, FILES, FACTS)
    assert {name: Store(root).read(KEY, name) for name in FILES} == FILES
    assert temporaries(root) == []


@pytest.mark.parametrize("act", ["write", "copy"])
def test_a_file_that_two_write_at_once_is_one_of_the_two(
    act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"mine")

    def write(content: bytes) -> None:
        source.write_bytes(content)
        record.write_file(target, content) if act == "write" else record.copy_file(source, target)

    meanwhile(monkeypatch, 0, lambda: write(b"theirs"))
    write(b"mine")
    assert target.read_bytes() == b"mine" and temporaries(tmp_path) == []


TWIN = (
    "import os; os.getpid = lambda: 1; os.path.isdir('/proc')\n"
    "import pathlib; exists = pathlib.Path.exists\n"
    "pathlib.Path.exists = lambda path: not str(path).startswith('/proc') and exists(path)\n"
    "from expunge.cli import main; main()"
)
"""A run in a container of its own: process 1, and no other process is in sight."""


@pytest.mark.parametrize(
    "changes", [{}, {"name": "other"}, {"method": []}], ids=["same", "other name", "other methods"]
)
def test_two_runs_at_once_end_right(changes: Table, clean: Path, tmp_path: Path) -> None:
    out, specs = tmp_path / "runs", [tmp_path / "a", tmp_path / "b"]
    processes = []
    for folder, table in zip(specs, (two_seeds(), two_seeds(**changes)), strict=True):
        folder.mkdir()
        (folder / "spec.toml").write_text(toml(table))
        command = [sys.executable, "-c", TWIN, "run", str(folder / "spec.toml"), "--out", str(out), "--workers", "1"]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, messages = process.communicate(timeout=120)
        assert process.returncode == 0, messages
    for name in {"tiny", changes.get("name", "tiny")}:
        assert finished(cli("verify", out / name)).code == 0
    # Whichever run was last, one more gives the clean bytes.
    finished(run(two_seeds(), out))
    expected = contents(clean)
    assert {name: data for name, data in contents(out).items() if not name.startswith("other")} == expected


@pytest.mark.parametrize("moment", ["diagnosis.json", "results.jsonl", "verdicts.json", "manifest.json"])
def test_a_run_that_starts_while_another_writes_its_record_waits(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the half-written record for that of a killed run, and remove its results."""
    table = tiny(seeds=[0], diagnostic=[{"name": "recommendation"}])
    out, plan, started = tmp_path / "runs", Plan(parse(table, tmp_path)), list[threading.Thread]()
    write = record.write_file

    def writing(path: Path, content: Any) -> None:
        write(path, content)
        if path.name == moment and not started and path.parent == out / "tiny":
            started.append(threading.Thread(target=run_folder.RunFolder(path.parent).open, args=(plan,)))
            started[0].start()
            started[0].join(0.3)

    for place in ("expunge.pipeline.folder", "expunge.base.manifest", "expunge.base.record"):
        monkeypatch.setattr(f"{place}.write_file", writing)
    finished(run(table, out))
    started[0].join(10)
    assert finished(cli("verify", out / "tiny")).code == 0


@pytest.mark.parametrize("harmed", [ORIGINAL, STATISTICS, UNLEARNED, AUDIT])
def test_what_another_run_has_computed_again_is_not_removed(
    harmed: str, out: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the same damage, and one is slower to discard it."""
    flip(next(entry(out, harmed).glob("*.safetensors")))
    discard, calls = Store.discard, list[str]()
    look = outstanding.outstanding

    def slow(*arguments: Any) -> Any:
        reasons = look(*arguments)
        if not calls:
            calls.append("")
            finished(run(two_seeds(), out))  # the quicker run
            monkeypatch.setattr(Store, "discard", lambda store, key: (calls.append(key), discard(store, key)))
        return reasons

    monkeypatch.setattr(outstanding, "outstanding", slow)
    finished(run(two_seeds(), out))
    assert calls == [""] and contents(out) == contents(clean)


# 22: inputs that change between planning and the end of a stage


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A spec with files of every kind: data, ids, the user's weights, and weights that were unlearned elsewhere."""
    folder = tmp_path / "project"
    folder.mkdir()
    wrong_digits(folder, 12, 120, 60)
    table = {
        "name": "own",
        "seeds": [0, 1],
        "data": {"name": "arrays", "path": "own.npz"},
        "model": {"name": "mlp", "widths": [16], "weights": "own.safetensors"},
        # So little training that references are like the original, whatever file is exchanged.
        "train": {"epochs": 1, "learning_rate": 0.003},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "checkpoint", "path": "theirs.safetensors"}, {"name": "finetune", "epochs": 1}],
        "attack": [{"name": "relearn", "epochs": 1}],
    }
    (folder / "spec.toml").write_text(toml(table))
    trained = parse({**table, "model": {"name": "mlp", "widths": [16]}, "method": []}, folder)
    data = Plan(trained).data
    recipe = Plan(trained).recipe(data)
    module = recipe.fit(recipe.build(3), data, data.train, 3)
    for name in ("own", "theirs"):
        (folder / f"{name}.safetensors").write_bytes(checkpoint.dump(module))
    return folder


def own(project: Path, *arguments: object) -> Result:
    return cli("run", project / "spec.toml", "--out", project / "runs", "--workers", 1, *arguments)


def other_version(path: Path) -> Path:
    """Another valid content of an input file, beside it."""
    other = path.with_name(f"other-{path.name}")
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
        np.savez(other, **{**arrays, "x": arrays["x"][::-1]})
    elif path.suffix == ".txt":
        other.write_text("\n".join(map(str, range(20, 32))))
    else:
        save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, other)
    return other


class Elsewhere(Executor):
    """Runs each task as a process does that starts after something has happened."""

    def __init__(self, before: Callable[[], object]) -> None:
        super().__init__()
        object.__setattr__(self, "before", before)

    def run(self, tasks: Sequence[Computation], begun: Any, finished: Any) -> None:
        self.before()  # type: ignore[attr-defined]
        known, schedule._known_worker = schedule._known_worker, None
        try:
            for task in tasks:
                begun(task)
                finished(task, task.call(*task.arguments))
        finally:
            schedule._known_worker = known


READERS: dict[str, tuple[Any, str]] = {
    "own.npz": (Arrays, "_read"),
    "forget.txt": (indices, "_read"),
    "own.safetensors": (checkpoint, "load"),
    "theirs.safetensors": (checkpoint, "load"),
}
"""Input file -> what reads it."""


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("back", [True, False], ids=["and is put back", "and stays"])
def test_an_input_that_changes_while_a_worker_reads_it_is_not_stored(
    file: str, back: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker plans with the planned contents, and reads others."""
    path, aside = project / file, project / f"aside-{file}"
    other = other_version(path)
    (place, name), swapped_once = READERS[file], Counter[str]()
    reading = getattr(place, name)

    def swapping(*arguments: Any, **keywords: Any) -> Any:
        mine = file == "own.npz" or file in map(str, [Path(str(a)).name for a in arguments])
        if not swapped_once["planned"] or swapped_once["done"] or not mine:
            return reading(*arguments, **keywords)
        swapped_once["done"] += 1
        os.replace(path, aside), os.replace(other, path)
        try:
            return reading(*arguments, **keywords)
        finally:
            if back:
                os.replace(path, other), os.replace(aside, path)

    monkeypatch.setattr(place, name, swapping)
    plan, store = Plan(read(project / "spec.toml")), Store(project / "runs" / "cache")
    affected = _first_stages(plan, file)
    elsewhere = Elsewhere(lambda: swapped_once.update(planned=1))
    (project / "runs" / "cache").mkdir(parents=True)
    with pytest.raises(RunError, match=r"own|forget|theirs|contents|differently"):
        run_stages(plan, store, plan.stages, elsewhere, lambda *_: None, lambda *_: None)
    assert swapped_once["done"] == 1
    assert not affected & stages_done(project / "runs")
    monkeypatch.undo()
    if not back:
        os.replace(aside, path)
    finished(own(project))
    undisturbed = project / "undisturbed"
    finished(cli("run", project / "spec.toml", "--out", undisturbed, "--workers", 1))
    assert contents(project / "runs") == contents(undisturbed)


def _first_stages(plan: Plan, file: str) -> set[str]:
    """Keys of the stages that read the file themselves."""
    if file == "theirs.safetensors":
        return {s.key for s in plan.stages if s.kind == "unlearn" and s.model == "checkpoint"}
    return {s.key for s in plan.stages if s.kind == "original" or file != "own.safetensors"}


CASE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3))

def train(model, dataset):
    pass
"""


@pytest.mark.parametrize("file", ["data", "original", "finetune"])
@pytest.mark.parametrize("harm", ["a bit", "gone"])
def test_a_case_that_changes_on_its_way_to_a_worker_is_refused(
    file: str, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook hands its data and models over in files."""
    (tmp_path / "my_case.py").write_text(CASE)
    monkeypatch.syspath_prepend(tmp_path)
    build, train = (registry.load("method", f"my_case:{name}") for name in ("build", "train"))
    torch.manual_seed(1)
    forget, retain, test = (TensorDataset(torch.randn(n, 4), torch.arange(n) % 3) for n in (6, 12, 9))
    case = expunge.case(build(), forget=forget, retain=retain, test=test, recipe=expunge.recipe(build, train))
    done = expunge.unlearn(case, "finetune", epochs=1)
    addresses = addresses_of(case)
    assert isinstance(addresses, dict)
    home = home_of(CasePlan(spec_of(done, 1, (), (), False), case, done, {}, {}, 1, addresses), tmp_path)
    assert isinstance(home, CaseHome) and home.plan().own_digest
    path = home.folder / f"{file}.safetensors"
    flip(path) if harm == "a bit" else path.unlink()
    with pytest.raises(RunError, match=rf"{file}\.safetensors: .*(changed|cannot read).*run the same again"):
        home.plan()
    sys.modules.pop("my_case")


OF_CASE = {
    "my_case.py": CASE.replace("import torch", "import torch\nimport my_layers", 1),
    "my_layers.py": "WIDTH = 4\n",
    "my_attack.py": "from my_helper import X\ndef attack(model, case, seed):\n    raise AssertionError(X)\n",
    "my_helper.py": "X = 1\n",
}


@pytest.mark.parametrize("harm", ["changed", "gone"])
@pytest.mark.parametrize("file", OF_CASE)
def test_code_of_a_case_that_changes_on_its_way_to_a_worker_is_refused(
    file: str, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker takes the keys from the notebook, so nothing else would notice."""
    for name, text in OF_CASE.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    build, train = (registry.load("method", f"my_case:{name}") for name in ("build", "train"))
    torch.manual_seed(1)
    forget, retain, test = (TensorDataset(torch.randn(n, 4), torch.arange(n) % 3) for n in (6, 12, 9))
    case = expunge.case(build(), forget=forget, retain=retain, test=test, recipe=expunge.recipe(build, train))
    done = expunge.unlearn(case, "finetune", epochs=1)
    addresses = addresses_of(case)
    assert isinstance(addresses, dict)
    attacks = {"own": registry.build("attack", "my_attack:attack", {}, where="attack")}
    plan = CasePlan(spec_of(done, 1, (), (), False), case, done, attacks, {}, 1, addresses)
    home = home_of(plan, tmp_path)
    assert isinstance(home, CaseHome)
    (tmp_path / file).write_text(OF_CASE[file] + "# other\n") if harm == "changed" else (tmp_path / file).unlink()
    # The worker is another process; where a module is gone, its import fails first.
    for name in OF_CASE if harm == "changed" else ():
        sys.modules.pop(Path(name).stem, None)
    with pytest.raises(RunError, match=rf"{file}: the code was changed while the audit ran"):
        home.plan()
    with pytest.raises(RunError, match=rf"{file} was changed while the run read it"):
        plan.inputs.refuse_changes()


# 23: a rerun that fails or is killed


def recorded_spec(out: Path) -> Any:
    return json.loads((out / "tiny" / "spec.json").read_text())


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def failing_at(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Fail before a file of the record is written."""
    write = run_folder.write_file

    def writing(path: Path, content: Any) -> None:
        if path.name == name:
            raise error
        write(path, content)

    for module in (run_folder, record):
        monkeypatch.setattr(module, "write_file", writing)
    from expunge.base import manifest

    monkeypatch.setattr(manifest, "write_file", writing)


@pytest.mark.parametrize(
    "moment", ["a method diverges", "a stage is interrupted", "env.json", "results.jsonl", "manifest.json"]
)
def test_a_rerun_that_does_not_finish_leaves_no_results_beside_another_spec(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = tmp_path / "runs", tiny(seeds=[0], method=[{"name": "finetune", "epochs": 1}])
    finished(run(table, out))
    before = contents(out / "tiny")
    changed = {**table, "method": [{"name": "finetune", "epochs": 2}]}
    if moment == "a method diverges":
        changed["method"].append({"name": "random_relabel", "learning_rate": 1e30})
    elif moment == "a stage is interrupted":
        monkeypatch.setattr(Store, "put", interrupt)
    else:
        failing_at(monkeypatch, moment, KeyboardInterrupt())
    assert run(changed, out).code in (4, 130)
    monkeypatch.undo()
    if (out / "tiny" / "manifest.json").exists():
        # The finished record is as it was.
        assert contents(out / "tiny") == before and recorded_spec(out)["method"][0]["epochs"] == 1
        assert finished(cli("verify", out / "tiny")).code == 0
    else:
        names = {"results.jsonl", "verdicts.json", "report.html"}
        left = {name for name in names if (out / "tiny" / name).exists()}
        assert left == (names - {"report.html"} if moment == "manifest.json" else set())
        assert recorded_spec(out)["method"][0]["epochs"] == 2
        for verb in ("verify", "report"):
            assert "the run has not finished" in cli(verb, out / "tiny").message()
    if moment != "a method diverges":
        finished(run(changed, out))
        fresh = tmp_path / "fresh" / "runs"
        finished(run(changed, fresh))
        assert contents(out / "tiny") == contents(fresh / "tiny")


def test_files_of_a_method_that_the_spec_no_longer_names_leave_the_record(tmp_path: Path) -> None:
    out, table = tmp_path / "runs", tiny(seeds=[0])
    finished(run(table, out))
    (out / "tiny" / "models" / "mine.txt").write_text("a note of the user")
    finished(run({**table, "method": []}, out))
    left = {path.name for path in (out / "tiny").rglob("*") if "random_relabel" in path.name}
    assert left == set() and (out / "tiny" / "models" / "mine.txt").exists()


@pytest.mark.parametrize("file", [*READERS, "nothing"])
def test_other_contents_of_an_input_replace_a_finished_record_with_a_word(file: str, project: Path) -> None:
    finished(own(project))
    rows = (project / "runs" / "own" / "results.jsonl").read_bytes()
    place = {"own.npz": "data.path", "forget.txt": "forget.path", "own.safetensors": "model.weights"}
    if file == "nothing":
        os.utime(project / "own.npz")
    else:
        os.replace(other_version(project / file), project / file)
    again = finished(own(project))
    said = [line for line in again.err.splitlines() if "holds a finished run" in line]
    if file == "nothing":
        assert said == [] and (project / "runs" / "own" / "results.jsonl").read_bytes() == rows
    else:
        assert len(said) == 1 and f"other contents of {place.get(file, 'method')}" in said[0].replace(
            " 'checkpoint'.path", ""
        )
        assert (project / "runs" / "own" / "results.jsonl").read_bytes() != rows
        assert finished(cli("verify", project / "runs" / "own")).code == 0


def test_the_spec_and_the_environment_have_digests_and_inputs_too(project: Path) -> None:
    finished(own(project))
    root = project / "runs" / "own"
    digests = json.loads((root / "manifest.json").read_text())["files"]
    assert {"spec.json", "env.json", "results.jsonl", "verdicts.json"} <= digests.keys()
    inputs = json.loads((root / "env.json").read_text())["inputs"]
    assert inputs == {
        "data.path": record.file_digest(project / "own.npz"),
        "forget.path": record.file_digest(project / "forget.txt"),
        "method 'checkpoint'.path": record.file_digest(project / "theirs.safetensors"),
        "model.weights": record.file_digest(project / "own.safetensors"),
    }
    (root / "env.json").unlink()
    assert "env.json" in cli("verify", root).message()


# 26: hashing once, places, permissions


opens = Counter[str]()


@pytest.fixture(scope="module", autouse=True)
def _watch_opens() -> None:
    """Count every opening of a file in this process; Python cannot remove such a hook."""

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            opens[os.fspath(arguments[0])] += 1

    sys.addaudithook(count)


@pytest.mark.parametrize("file", READERS)
def test_planning_hashes_a_file_once(file: str, project: Path) -> None:
    time.sleep(0.2)  # a file that was written this moment is hashed again, as it may change within a time stamp
    spec = read(project / "spec.toml")
    opens.clear()
    stages = Plan(spec).stages
    loads = {"own.npz": 1}.get(file, 0)
    assert len(stages) > 15 and opens[str(project / file)] <= 1 + loads


@pytest.fixture
def elsewhere_named(project: Path, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Name the files of the project in another way."""

    def rename(way: str) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        text = (project / "spec.toml").read_text()
        for file in READERS:
            if way == "beside the project":
                os.replace(project / file, tmp_path / "data" / file)
            named = {"in full": project / file, "beside the project": Path("..") / "data" / file}[way]
            text = text.replace(f'"{file}"', f'"{named}"')
        (project / "spec.toml").write_text(text)

    yield rename


@pytest.mark.parametrize("way", ["relative", "in full", "beside the project", "an audit of weights elsewhere"])
def test_no_place_of_this_machine_is_in_a_record_or_its_cache(
    way: str, project: Path, tmp_path: Path, elsewhere_named: Callable[[str], None]
) -> None:
    out = project / "runs"
    if way in ("in full", "beside the project"):
        elsewhere_named(way)
    if way.startswith("an audit"):
        shutil.copy(project / "theirs.safetensors", tmp_path / "theirs.safetensors")
        finished(cli("audit", project / "spec.toml", tmp_path / "theirs.safetensors", "--out", out, "--workers", 1))
    else:
        finished(own(project))
    holding = [path for path in out.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]
    assert holding == []


@pytest.mark.parametrize("way", ["relative", "beside the project", "in full"])
def test_a_project_that_moves_keeps_its_cache_and_its_record(
    way: str, project: Path, tmp_path: Path, elsewhere_named: Callable[[str], None]
) -> None:
    if way != "relative":
        elsewhere_named(way)
    finished(own(project))
    before = contents(project / "runs")
    moved = tmp_path / "home" / "somebody" / "moved"
    moved.parent.mkdir(parents=True)
    if way == "beside the project":
        os.replace(tmp_path / "data", moved.parent / "data")
    os.replace(project, moved)
    spec = moved / "spec.toml"
    spec.write_text(spec.read_text().replace(str(project), str(moved)))
    again = finished(own(moved))
    assert "finished run" not in again.err and "[" not in again.err.splitlines()[0]
    assert " stages are already done" in again.err and "[ 1/" not in again.err and "[01/" not in again.err
    assert contents(moved / "runs") == before


@pytest.mark.parametrize("changes", ["nothing", "a file", "a name"])
def test_the_files_of_a_folder_count_by_content_and_its_place_does_not(changes: str, tmp_path: Path) -> None:
    """The official files of Fashion-MNIST; nothing reads them here."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        for name in fashion_mnist.FILES:
            (tmp_path / place / f"{name}-ubyte.gz").write_text(name)
    if changes == "a file":
        flip(tmp_path / "b" / f"{fashion_mnist.FILES[2]}-ubyte.gz")
    elif changes == "a name":
        first, second = (tmp_path / "b" / f"{name}-ubyte.gz" for name in fashion_mnist.FILES[:2])
        aside = tmp_path / "aside"
        os.replace(first, aside), os.replace(second, first), os.replace(aside, second)
    parts = (fashion_mnist.FashionMNIST(subset="full", folder=str(tmp_path / place)) for place in ("a", "b"))
    first_print, second_print = (part.fingerprint() for part in parts)
    assert (first_print == second_print) is (changes == "nothing")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o000])
def test_only_the_owner_reads_the_cache_and_the_record(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        finished(run(tiny(seeds=[0], method=[]), tmp_path / "runs"))
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / "runs" / name).stat().st_mode) for name in ("cache", "tiny")}
    assert modes == {"cache": 0o700, "tiny": 0o700}


def test_a_folder_that_the_user_made_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "runs" / "cache").mkdir(parents=True, mode=0o755)
    (tmp_path / "runs" / "cache").chmod(0o755)
    finished(run(tiny(seeds=[0], method=[]), tmp_path / "runs"))
    assert stat.S_IMODE((tmp_path / "runs" / "cache").stat().st_mode) == 0o755
    entries = [path for path in (tmp_path / "runs" / "cache").iterdir() if path.stat().st_mode & stat.S_IROTH]
    assert len(entries) == len(stages_done(tmp_path / "runs"))
