"""Specs, settings and input files of any content end in one message with exit code 2 or 3, before anything is computed."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _mutations import quoted, spec
from _within import within

from expunge.data.arrays import Arrays
from expunge.reporting.svg import drawing, panel
from helpers import Result, Table, cli, run, tiny


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def planned(text: str | bytes, folder: Path, *options: object) -> Result:
    """A dry run of a spec with this text."""
    path = folder / "spec.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with within(60):
        return cli("run", path, "--dry-run", "--out", folder / "runs", *options)


def refused(result: Result, *words: str) -> None:
    assert result.code in (2, 3), (result.code, result.err[-3000:])
    assert len(result.message()) < 5000
    for word in words:
        assert word in result.err


def changed(**changes: Any) -> str:
    return spec(tiny(**changes))


MLP = {"name": "mlp", "widths": [16]}
EXTREMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "a seed of 5,000 digits": (f"seeds = [{'9' * 5000}]\n", ("a whole number is too long", "64 bits")),
    "a seed of 4,000 digits": (changed(seeds=[10**4000]), ("seeds[0]", "64 bits")),
    "epochs of 31 digits": (changed(train={"epochs": 10**30}), ("train.epochs", "64 bits")),
    "a width of 31 digits": (changed(model={"name": "mlp", "widths": [10**30]}), ("model.widths[0]", "64 bits")),
    "a budget of 31 digits": (changed(method=[{"name": "finetune", "budget": 10**30}]), ("method[0].budget", "64")),
    "a setting of a function": (changed(model={"name": "json:dumps", "indent": -(10**30)}), ("model.indent", "64")),
    "a list of 5,000 levels": (f"a = {'[' * 5000}", ("nested too deeply",)),
    "a table of 5,000 levels": (f"a = {'{a = ' * 5000}", ("nested too deeply",)),
    "40 levels": (changed(data={"name": "digits", "train": json.loads("[" * 40 + "]" * 40)}), ("nested", "32 levels")),
    "a key of 5,000 words": (f"{'a.' * 5000}b = 1\n", ("dots",)),
    "a zero byte in weights": (changed(model={**MLP, "weights": "a\0b"}), ("model.weights", "zero byte")),
    "a zero byte in a path": (changed(data={"name": "arrays", "path": "a\0b"}), ("data.path", "zero byte")),
    "a zero byte in a list": (changed(method=[{"name": "finetune", "x": ["\0"]}]), ("method[0].x[0]", "zero byte")),
    "more threads than there can be": (changed(threads=10**9), ("threads", "1 to 1024")),
    "a device of 5,000 digits": (changed(device=f"cuda:{'9' * 5000}"), ("device", "cuda:<number>")),
    "a width of 2**31": (changed(model={"name": "mlp", "widths": [2**31, 2**10]}), ("model", "GiB")),
    "a width of 2**62": (changed(model={"name": "mlp", "widths": [2**62]}), ("model", "cannot be built")),
    "2,000 seeds": (changed(seeds=list(range(2000))), ("seeds", "at most")),
    "2,000 attacks": (changed(attack=[{"name": "relearn", "label": f"a{i}"} for i in range(2000)]), ("attack", "most")),
    "2**40 shadows": (changed(audit=[{"name": "u_lira", "shadows": 2**40}]), ("audit[0].shadows", "4096")),
    "a megabyte": ("#" * 2**20, ("too large for a spec",)),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_values_are_refused_with_their_place(case: str, tmp_path: Path) -> None:
    text, words = EXTREMES[case]
    refused(planned(text, tmp_path), *words)


@pytest.mark.parametrize(
    "option",
    [f"seeds=[{'9' * 5000}]", "train.epochs=1" + "0" * 30, f"data.train={'[' * 3000}", 'model.weights="a\\u0000b"'],
    ids=["digits", "number", "nesting", "zero byte"],
)
def test_extreme_values_of_an_option_are_refused(option: str, tmp_path: Path) -> None:
    refused(planned(changed(), tmp_path, "--set", option))


LABELS: dict[str, tuple[Table, str]] = {
    "a method of 240 letters": ({"method": [{"name": "finetune", "label": "x" * 240}]}, "method[0].label"),
    "an attack of 240 letters": ({"attack": [{"name": "relearn", "label": "x" * 240}]}, "attack[0].label"),
    "an audit of 70 letters": ({"audit": [{"name": "loss", "label": "x" * 70}]}, "audit[0].label"),
    "a function without a label": ({"method": [{"name": "x" * 200 + ":act"}]}, "method[0].name"),
    "a run of 240 letters": ({"name": "x" * 240}, "name"),
    "the folder of studies": ({"name": "studies"}, "reserved"),
    "the folder of cases": ({"name": "cases"}, "reserved"),
    "the cache in capitals": ({"name": "Cache"}, "reserved"),
    "labels that differ in case": (
        {"method": [{"name": "finetune", "label": "a"}, {"name": "finetune", "label": "A"}]},
        "share the file",
    ),
    "three long labels": (
        {
            "method": [{"name": "finetune", "label": "m" * 60}],
            "attack": [{"name": "relearn", "label": "a" * 60}],
            "audit": [{"name": "loss", "label": "l" * 60}],
            "seeds": [2**63 - 1],
        },
        "bytes",
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_names_that_cannot_be_files_are_refused_before_anything_is_computed(case: str, tmp_path: Path) -> None:
    table, word = LABELS[case]
    (tmp_path / f"{'x' * 200}.py").write_text("def act(model, problem, recipe, seed, budget):\n    return model\n")
    result = run(tiny(**table), tmp_path / "runs")
    refused(result, word)
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("one", "other"), [("lr.1", "lr-1"), ("a.b", "a_b"), ("a__b, c", "a, b__c"), ("x+", "x*"), ("a b", "a-b")]
)
def test_charts_of_two_labels_have_two_names(one: str, other: str) -> None:
    assert drawing(*panel(), one, []).name != drawing(*panel(), other, []).name


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).random((60, 5)).astype(np.float32)
    table = {"x": x[:40], "y": np.arange(40) % 3, "tx": x[40:], "ty": np.arange(20) % 3} | changes
    return {name: array for name, array in table.items() if array is not None}


def packed(table: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **table)
    return buffer.getvalue()


def with_header(descr: str, shape: str, content: bytes = b"") -> bytes:
    """Arrays of which `x` has a header of our own making."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    entry = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content
    buffer = io.BytesIO(packed(arrays(x=None)))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("x.npy", entry)
    return buffer.getvalue()


MARKS = {"encrypted": (6, 0x01), "strongly encrypted": (6, 0x41), "patched": (6, 0x20)}
METHODS = {"deflate64": (8, 9), "zstandard": (8, 93)}


def marked(mark: str) -> bytes:
    """Arrays whose entries say that they are encrypted, or compressed by a method that Python lacks."""
    data = bytearray(packed(arrays()))
    at, value = (MARKS | METHODS)[mark]
    for head, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = data.find(head)
        while place >= 0:
            data[place + at + shift] = value | (data[place + at + shift] if mark in MARKS else 0)
            place = data.find(head, place + 4)
    return bytes(data)


dates = np.arange(40).astype("datetime64[D]")
NPZ: dict[str, bytes] = {
    **{mark: marked(mark) for mark in MARKS | METHODS},
    "a header that is no header": with_header("'<f4'", "(40, 5", b"\0" * 800),
    "a shape beyond memory": with_header("'<f4'", "(1099511627776, 64)", b"\0" * 800),
    "dates as labels": packed(arrays(y=dates)),
    "dates as inputs": packed(arrays(x=np.stack([dates] * 5, 1))),
    "a label of 1e7": packed(arrays(y=np.r_[10_000_000, np.arange(39) % 3])),
    "a label of 2**21": packed(arrays(y=np.r_[2**21, np.arange(39) % 3])),
    "a label of 3e6 of a test example": packed(arrays(ty=np.r_[3_000_000, np.arange(19) % 3])),
    "a label of 2e6 in bytes": packed(arrays(y=np.r_[2_000_000, np.arange(39) % 3].astype(">u4"))),
}
REFUSED_BEFORE: dict[str, bytes] = {
    "a header that is a call": with_header("__import__('os')", "(40, 5)", b"\0" * 800),
    "a header with an unknown type": with_header("'<q9'", "(40, 5)", b"\0" * 800),
    "a shape beyond 64 bits": with_header("'<f4'", "(9223372036854775807, 9223372036854775807)", b"\0" * 800),
    "a negative shape": with_header("'<f4'", "(-40, -5)", b"\0" * 800),
    "complex inputs": packed(arrays(x=np.zeros((40, 5), np.complex64))),
    "texts as labels": packed(arrays(y=np.array(["a"] * 40))),
    "a structured array": packed(arrays(x=np.zeros(40, [("a", "f4")]))),
    "a label of 2e40": packed(arrays(y=np.r_[2e40, np.arange(39) % 3])),
    "a label of 2**63": packed(arrays(y=np.r_[np.uint64(2**63), np.arange(39, dtype=np.uint64) % 3])),
    "inputs beyond float32": packed(arrays(x=np.full((40, 5), 1e300))),
    "no inputs": packed(arrays(x=np.zeros((0, 5), np.float32), y=np.zeros(0, int))),
    "scalars": packed({name: np.array(1.0) for name in arrays()}),
    "groups of another length": packed(arrays(groups=np.zeros(40, int))),
}


def own(**changes: Any) -> Table:
    data, forget = {"name": "arrays", "path": "own.npz"}, {"name": "indices", "path": "forget.json"}
    return tiny(**({"name": "own", "data": data, "forget": forget, "seeds": [0], "train": {"epochs": 1}} | changes))


@pytest.mark.parametrize("case", NPZ | REFUSED_BEFORE)
def test_arrays_of_any_content_end_in_a_message(case: str, tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes((NPZ | REFUSED_BEFORE)[case])
    (tmp_path / "forget.json").write_text("[0, 1, 2]")
    refused(planned(spec(own()), tmp_path), ": ")


WITH_TEST, ALL, TRAIN = [0, 0, 0, *range(1, 38), *[0] * 20], [0] * 60, [0] * 40 + [*range(1, 21)]
GROUPS: dict[str, tuple[list[int], list[Table]]] = {
    "one group": (ALL, [{"name": "relearn"}]),
    "one group of all training examples": (TRAIN, [{"name": "relearn"}]),
    "one group of the forget set and the test set": (WITH_TEST, [{"name": "relearn", "source": "test"}]),
    "one group, and a second attack": (TRAIN, [{"name": "quantise"}, {"name": "relearn", "label": "again"}]),
    "one group with a negative number": ([-7] * 60, [{"name": "relearn"}]),
}


@pytest.mark.parametrize("case", GROUPS)
def test_an_attack_without_training_data_is_refused_before_anything_is_computed(case: str, tmp_path: Path) -> None:
    groups, attacks = GROUPS[case]
    (tmp_path / "own.npz").write_bytes(packed(arrays(groups=np.array(groups))))
    (tmp_path / "forget.json").write_text("[0, 1, 2]")
    refused(planned(spec(own(attack=attacks)), tmp_path), "data.groups", "leave the attack out")


@pytest.mark.parametrize("dtype", [">f4", "<f2", ">f8", "longdouble", ">i4", "?", "<u2", ">u8"])
def test_every_number_format_is_read(dtype: str, tmp_path: Path) -> None:
    x = (np.random.default_rng(0).random((60, 5)) * 100).astype(dtype)
    (tmp_path / "own.npz").write_bytes(packed(arrays(x=x[:40], tx=x[40:])))
    data = Arrays(str(tmp_path / "own.npz"))()
    assert torch.equal(data.inputs, torch.from_numpy(x.astype(np.float32)))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


OBSTACLES = {"a folder": Path.mkdir, "a pipe": os.mkfifo, "a link to itself": loop, "nothing": lambda path: None}
PLACES: dict[str, tuple[Table, str]] = {
    "data": ({"data": {"name": "arrays", "path": "there"}}, "data.path"),
    "ids": ({"forget": {"name": "indices", "path": "there"}}, "forget.path"),
    "ids to retain": ({"forget": {"name": "indices", "path": "ids.txt", "retain": "there"}}, "forget.retain"),
    "weights": ({"model": {**MLP, "weights": "there"}}, "model.weights"),
    "weights of a method": ({"method": [{"name": "checkpoint", "path": "there"}]}, ""),
}


REFUSED = [(obstacle, place) for obstacle in OBSTACLES if obstacle != "a pipe" for place in ("data", "weights")]
"""These the tests of bad input have already."""


@pytest.mark.parametrize(("obstacle", "place"), [(o, p) for o in OBSTACLES for p in PLACES if (o, p) not in REFUSED])
def test_what_is_no_file_is_refused(obstacle: str, place: str, tmp_path: Path) -> None:
    OBSTACLES[obstacle](tmp_path / "there")
    (tmp_path / "ids.txt").write_text("0\n1\n")
    table, word = PLACES[place]
    refused(planned(changed(**table), tmp_path), word, "there")


@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_no_file_can_have_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("0\n1\n")
    table, word = PLACES[place]
    text = changed(**table).replace('"there"', quoted("a" * 5000))
    refused(planned(text, tmp_path), word)


FUNCTIONS: dict[str, Table] = {
    "a task that fails": {"forget": {"name": "torch:load", "count": 20}},
    "a model that is none": {"model": {"name": "functools:partial", "widths": [32]}},
    "a model that is a table": {"model": {"name": "builtins:dict"}},
    "data that are none": {"data": {"name": "os:getcwd"}},
    "a task that returns nothing": {"forget": {"name": "builtins:print"}},
    "a function that ends the program": {"forget": {"name": "sys:exit"}},
    "a module that ends the program": {"model": {"name": "ends_of_test:build"}},
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_that_is_no_part_is_named(case: str, tmp_path: Path) -> None:
    (tmp_path / "ends_of_test.py").write_text("raise SystemExit(0)\n")
    refused(planned(changed(**FUNCTIONS[case]), tmp_path))


OTHER_KINDS: dict[str, Table] = {
    "a function as objective": {"objective": {"name": "json:dumps"}},
    "a function of mine as objective": {"objective": {"name": "mine_of_test:act"}},
    "a method as objective": {"objective": {"name": "expunge.methods.finetune:Finetune"}},
    "an audit as method": {"method": [{"name": "expunge.audits.loss:Loss", "label": "x"}]},
    "a method as audit": {"audit": [{"name": "expunge.methods.finetune:Finetune", "label": "x"}]},
    "a task as model": {"model": {"name": "expunge.tasks.random_subset:RandomSubset"}},
    "a data set as task": {"forget": {"name": "expunge.data.digits:Digits"}},
    "an attack as data": {"data": {"name": "expunge.attacks.relearn:Relearn"}},
    "a method as attack": {"attack": [{"name": "expunge.methods.finetune:Finetune", "label": "x"}]},
    "a model as diagnostic": {"diagnostic": [{"name": "expunge.models.mlp:MLP", "label": "x"}]},
    "a method as block": {"model": {**MLP, "block": [{"name": "expunge.methods.finetune:Finetune", "at": "layers"}]}},
    "a block as augmentation": {"augmentation": [{"name": "expunge.blocks.widen:Widen", "label": "x"}]},
}


@pytest.mark.parametrize("case", OTHER_KINDS)
def test_a_part_of_another_kind_is_named(case: str, tmp_path: Path) -> None:
    (tmp_path / "mine_of_test.py").write_text("def act(*arguments):\n    return 1\n")
    refused(planned(changed(**OTHER_KINDS[case]), tmp_path), "is no ")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", ["/proc", "/proc/1", "/usr", "full"])
def test_a_folder_of_very_many_files_is_refused_before_they_are_read(
    path: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the root of the file system; files of `/proc` also come and go while they are listed."""
    monkeypatch.setattr("expunge.base.part.MOST_FILES", 50)
    (tmp_path / "ids.txt").write_text("0\n1\n")
    (tmp_path / "full").mkdir()
    for i in range(60):
        (tmp_path / "full" / f"{i}").touch()
    table, word = PLACES[place]
    refused(planned(changed(**table).replace('"there"', quoted(path)), tmp_path), word)


FIXED = "from expunge.cli import main\nmain()\n"


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>/dev/full 1>/dev/full", "2>/dev/full 1>&-"])
def test_a_message_that_cannot_be_written_keeps_its_exit_code(redirect: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -c '{FIXED}' run nowhere.toml {redirect}"
    assert subprocess.run(["sh", "-c", command], timeout=60).returncode == 2
