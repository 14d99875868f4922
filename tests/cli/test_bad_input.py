"""Bad input, each kind once: one message with place, finding and remedy, the right exit code, and nothing harmed."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expunge.base import record
from expunge.cli import cli as cli_group
from expunge.reporting import page
from helpers import Table, cli, contents, finished, run, snapshot, stages_done, temporaries, tiny, write_spec


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for runs after a run that went well."""
    out = tmp_path_factory.mktemp("earlier") / "runs"
    finished(run(tiny(), out))
    return out


def refused(table: Table, out: Path, code: int, *words: str, options: tuple[object, ...] = ()) -> None:
    """The command fails with this code and these words, and leaves every file as it was."""
    before = snapshot(out)
    result = run(table, out, *options)
    message = result.message()
    assert result.code == code, message
    for word in words:
        assert word in message
    assert snapshot(out) == before


def method(**settings: Any) -> list[Table]:
    return [{"name": "random_relabel", **settings}]


DIGITS = {"name": "digits", "train": 120, "test": 60}
MLP = {"name": "mlp", "widths": [16]}
SPECS: dict[str, tuple[Table, tuple[str, ...]]] = {
    "unknown key": ({"metod": []}, ("spec: ", "unknown key 'metod'", "allowed: ", "did you mean 'method'?")),
    "unknown key of data": ({"data": {"name": "digits", "trian": 9}}, ("data: ", "'trian'", "did you mean 'train'?")),
    "unknown key of training": ({"train": {"epoch": 3}}, ("train: ", "'epoch'", "did you mean 'epochs'?")),
    "unknown key of a method": ({"method": method(wieght=2.0)}, ("method[0]: ", "'wieght'", "did you mean 'weight'?")),
    "unknown key of an attack": ({"attack": [{"name": "relearn", "K": 1}]}, ("attack[0]: ", "'K'", "epochs, k,")),
    "unknown method": (
        {"method": [{"name": "retrain"}, {"name": "random_relable"}]},
        ("method[1].name: ", "unknown method 'random_relable'", "did you mean 'random_relabel'?"),
    ),
    "unknown model": ({"model": {"name": "mpl"}}, ("model.name: ", "unknown model 'mpl'", "did you mean 'mlp'?")),
    "unknown data": ({"data": {"name": "digit"}}, ("data.name: ", "did you mean 'digits'?")),
    "data of another format": (
        {"data": {"name": "parquet"}},
        ("unknown data 'parquet'", "your own code as module:function"),
    ),
    "a model by its class": ({"model": {"name": "LlamaForCausalLM"}}, ("or your own code as module:function",)),
    "a task of one's own": ({"forget": {"name": "by_author"}}, ("forget.name: ", "your own code as module:function")),
    "an attack of one's own": (
        {"attack": [{"name": "mine"}]},
        ("attack[0].name: ", "your own code as module:function"),
    ),
    "unknown task": ({"forget": {"name": "label_swaps"}}, ("forget.name: ", "did you mean 'label_swap'?")),
    "unknown attack": ({"attack": [{"name": "unlearn"}]}, ("attack[0].name: ", "did you mean 'relearn'?")),
    "unknown audit": ({"audit": [{"name": "losses"}]}, ("audit[0].name: ", "did you mean 'loss'?")),
    "wrong type": ({"train": {"epochs": "ten"}}, ("train.epochs: ", "'ten'", "`int`", "`str`")),
    "wrong type of a table": ({"data": "digits"}, ("data: ", "'digits'", "a table with a name")),
    "wrong type of a list": ({"method": {"name": "retrain"}}, ("method: ", "[[method]]")),
    "wrong type inside a list": ({"model": {"name": "mlp", "widths": [16, "a"]}}, ("model.widths: ", "[16, 'a']")),
    "wrong choice": ({"train": {"optimizer": "adan"}}, ("train.optimizer: ", "'adan'")),
    "negative count": ({"forget": {"name": "label_swap", "count": -3}}, ("forget.count: ", "-3", ">= 1")),
    "zero count": ({"train": {"epochs": 0}}, ("train.epochs: ", "0", ">= 1")),
    "negative rate": ({"train": {"learning_rate": -0.1}}, ("train.learning_rate: ", "-0.1", "> 0")),
    "share above one": ({"train": {"final": 1.5}}, ("train.final: ", "1.5", "<= 1")),
    "true for a count": ({"forget": {"name": "label_swap", "count": True}}, ("forget.count: ", "True", "`bool`")),
    "true for threads": ({"threads": True}, ("threads: ", "True", "a whole number")),
    "true for a seed": ({"seeds": [0, True]}, ("seeds[1]: ", "True", "whole numbers")),
    "negative seed": ({"seeds": [0, -1]}, ("seeds[1]: ", "-1", "at least 0")),
    "seed twice": ({"seeds": [1, 1]}, ("seeds: ", "[1, 1]", "each once")),
    "no seed": ({"seeds": []}, ("seeds: ", "at least one")),
    "budget of nothing": ({"method": method(budget=0)}, ("method[0].budget: ", "0", "at least 1")),
    "after what is not there": (
        {"method": [*method(), {"name": "finetune", "after": "random_relable"}]},
        ("method[1].after: ", "unknown method 'random_relable'", "did you mean 'random_relabel'?"),
    ),
    "after itself": ({"method": method(after="random_relabel")}, ("method[0].after: ", "circle", "leave out")),
    "after each other": (
        {"method": [*method(), *({"name": "npo", "label": x, "after": y} for x, y in ("ab", "bc", "ca"))]},
        ("method[1].after: ", "a after b after c after a", "leave out"),
    ),
    "after what is no label": ({"method": method(after=1)}, ("method[0].after: ", "1", "the label of a method")),
    "an attack after a method": (
        {"attack": [{"name": "relearn", "after": "random_relabel"}]},
        ("attack[0]: ", "unknown key 'after'"),
    ),
    "required that is no bool": (
        {"audit": [{"name": "loss", "required": 1}]},
        ("audit[0].required: ", "true or false"),
    ),
    "name missing": ({"method": [{"label": "a"}]}, ("method[0]: ", "'name' is missing", "name = ...")),
    "name with a path": ({"name": "../up"}, ("name: ", "'../up'", "letters, digits")),
    "name of the cache": ({"name": "cache"}, ("name: ", "'cache' is reserved", "choose another")),
    "same method twice": ({"method": method() + method(epochs=1)}, ("method[1]: ", "twice", "label =")),
    "same label twice": (
        {"method": [{"name": "retrain", "label": "a"}, {"name": "finetune", "label": "a"}]},
        ("method[1]: ", "'a' occurs twice", "label ="),
    ),
    "reserved label": (
        {"method": method(label="reference")},
        ("method[0].label: ", "'reference' is reserved", "another"),
    ),
    "label with a blank": ({"method": method(label="a b")}, ("method[0].label: ", "'a b'", "letters, digits")),
    "labels that share a file": (
        {"attack": [{"name": "relearn", "label": "x"}], "audit": [{"name": "loss", "label": "x"}]},
        ("label: ", "share the file reference-s0-x", "another label"),
    ),
    "gate of no method": (
        {"gate": [{"method": "random_relable", "verdict": "erased"}]},
        ("gate[0].method: ", "did you mean 'random_relabel'?"),
    ),
    "method misspelt that a gate names": (
        {"method": [{"name": "random_relable"}], "gate": [{"method": "random_relabel", "verdict": "erased"}]},
        ("method[0].name: ", "did you mean 'random_relabel'?"),
    ),
    "gate of no verdict": (
        {"gate": [{"method": "random_relabel", "verdict": "erazed"}]},
        ("gate[0].verdict: ", "dormant", "did you mean 'erased'?"),
    ),
    "gate without verdict": ({"gate": [{"method": "random_relabel"}]}, ("gate[0]: ", "'verdict' is missing")),
    "gate that is no table": ({"gate": [3]}, ("gate[0]: ", "3", "a table")),
    "forget as many as there are": ({"forget": {"name": "label_swap", "count": 120}}, ("forget.count: ", "1 to 119")),
    "more data than there are": ({"data": {"name": "digits", "train": 1797}}, ("data.train: ", "1797", "1 to 1796")),
    "no such class": ({"forget": {"name": "whole_class", "label": 10}}, ("forget.label: ", "class 10", "9 9")),
    "audit of other data": ({"audit": [{"name": "recitation"}]}, ("audit[0].name: ", "'recitation'", "performance")),
    "task of other data": ({"forget": {"name": "planted_text"}}, ("forget", "planted_text", "bytes")),
    "setting that is missing": ({"forget": {"name": "indices"}}, ("forget: ", "'path' is missing", "add a value")),
    "module that is not there": ({"model": {"name": "nowhere:net"}}, ("model.name: ", "nowhere", "module:function")),
    "function that is not there": ({"model": {"name": "json:net"}}, ("model.name: ", "json:net", "module:function")),
    "function that is none": ({"model": {"name": "json:__name__"}}, ("model.name: ", "not callable", "a function")),
}


@pytest.mark.parametrize(("changes", "words"), SPECS.values(), ids=SPECS)
def test_a_bad_spec_is_refused_before_anything_is_written(
    earlier: Path, changes: Table, words: tuple[str, ...]
) -> None:
    refused(tiny(**changes), earlier, 2, *words)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_is_refused(earlier: Path, value: str) -> None:
    # TOML has these as floats; no record could hold them.
    refused(tiny(), earlier, 2, "train.learning_rate: ", value, options=("--set", f"train.learning_rate={value}"))


@pytest.mark.parametrize("key", ["name", "data", "model", "forget"])
def test_a_table_that_is_missing_is_named_with_an_example(earlier: Path, key: str) -> None:
    table = tiny()
    del table[key]
    refused(table, earlier, 2, f"{key!r} is missing", "add ", "name = ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = [", ("not valid TOML", "end of document")),
        (b'name = "a"\nname = "b"', ("not valid TOML",)),
        (b'name = "\xff"', ("not valid TOML", "utf-8")),
        (None, ("cannot read the spec", "No such file", "check the path")),
        ("folder", ("cannot read the spec", "directory", "check the path")),
    ],
)
def test_a_spec_file_that_is_none_is_refused(
    tmp_path: Path, content: bytes | str | None, words: tuple[str, ...]
) -> None:
    path = tmp_path / "spec.toml"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    result = cli("run", path, "--out", tmp_path / "runs")
    assert result.code == 2
    for word in (str(path), *words):
        assert word in result.message()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "a.toml", "--workers", "0"),
        ("run", "a.toml", "--wrokers", "1"),
        ("unlearnt",),
        ("list", "a", "b"),
    ],
)
def test_wrong_usage_is_two_and_says_how(arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert "Usage: " in result.err and "Error: " in result.err and "Traceback" not in result.err


# --set


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("tarin.epochs=3", ("spec: ", "unknown key 'tarin'", "did you mean 'train'?")),
        ("train.epoch=3", ("train: ", "unknown key 'epoch'", "did you mean 'epochs'?")),
        ("method.random_relable.epochs=3", ("--set ", "unknown entry", "did you mean 'random_relabel'?")),
        ("method.1.epochs=3", ("--set ", "unknown entry '1'", "random_relabel")),
        ("method.0=3", ("--set ", "'method' is not a table")),
        ("name.a=3", ("--set ", "'name' is not a table")),
        ("name.a.b=3", ("--set ", "no 'a' in 'tiny'")),
        ("seeds.0.b=3", ("--set ", "no '0' in [0, 1]")),
        ("train.epochs", ("--set: ", "'train.epochs'", "a.b=value")),
        ("=3", ("--set: ", "'=3'", "a.b=value")),
        ("train.epochs=-1", ("train.epochs: ", "-1", ">= 1")),
        ("train.epochs=ten", ("train.epochs: ", "'ten'", "`int`")),
    ],
)
def test_a_bad_override_is_refused(earlier: Path, assignment: str, words: tuple[str, ...]) -> None:
    refused(tiny(), earlier, 2, *words, options=("--set", assignment))


# Forget sets from a file: the digits have training ids 0 to 119 and test ids 120 to 179.

IDS: dict[str, tuple[str | bytes | np.ndarray, tuple[str, ...]]] = {
    "out of range": ("1 2 180", ("id 180 is out of range", "allowed: 0 to 119")),
    "negative": ("1 -2", ("id -2 is out of range", "allowed: 0 to 119")),
    "too large for any index": (f"1 {10**30}", ("out of range", "ids of training examples")),
    "duplicated": ("1\n2\n1\n", ("id 1 occurs 2 times", "each id once")),
    "of the test set": ("1 120", ("id 120 is no training example", "ids of training examples: 0 to 119")),
    "empty": ("", ("the forget set is empty", "at least one example")),
    "all there are": (" ".join(map(str, range(120))), ("the retain set is empty", "forget fewer")),
    "words": ("one two", ("'one'", "whole numbers")),
    "fractions": ("1 2.5", ("'2.5'", "whole numbers")),
    "binary": (b"\xff\xfe\x00", ("utf-8", "whole numbers")),
}


@pytest.mark.parametrize(("ids", "words"), IDS.values(), ids=IDS)
def test_bad_forget_ids_are_refused(earlier: Path, ids: str | bytes, words: tuple[str, ...]) -> None:
    path = earlier.parent / "ids.txt"
    path.write_bytes(ids.encode() if isinstance(ids, str) else ids)
    refused(tiny(forget={"name": "indices", "path": "ids.txt"}), earlier, 2, "forget", *words)


@pytest.mark.parametrize(("field", "bad", "allowed"), [("retain", 180, "0 to 119"), ("holdout", 999, "120 to 179")])
def test_a_set_of_ids_names_the_ids_that_it_may_hold(earlier: Path, field: str, bad: int, allowed: str) -> None:
    for name, ids in (("ids.txt", "1 2 3"), ("other.txt", str(bad))):
        (earlier.parent / name).write_text(ids)
    forget = {"name": "indices", "path": "ids.txt", field: "other.txt"}
    refused(tiny(forget=forget), earlier, 2, f"forget.{field}: id {bad} is out of range; allowed: {allowed}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "spec.toml", "--out", "file/runs"),
        ("diagnose", "spec.toml", "--out", "file/runs"),
        ("unlearn", "spec.toml", "--save", "file/weights.safetensors"),
        ("study", "dormant", "--out", "file/runs"),
        ("compare", "earlier", "earlier", "--out", "file/page.html"),
        ("report", "earlier"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_remedy_names_no_option_that_the_verb_lacks(
    arguments: tuple[str, ...], earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    write_spec(tmp_path, tiny(seeds=[0], attack=[]))
    verb, *rest = [str(earlier / "tiny") if word == "earlier" else word for word in arguments]
    monkeypatch.chdir(tmp_path)
    if verb == "report":
        monkeypatch.setattr(page, "write_page", denied)
    message = cli(verb, *rest).message()
    options = {name for parameter in cli_group.commands[verb].params for name in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", message)) <= options, message


def denied(path: Path, *_: object) -> None:
    raise record.storage_error(OSError(errno.EACCES, "denied"), path)


@pytest.mark.parametrize("ids", [[0.5, 1.0], [[1, 2]], {"ids": [1]}, [1, True], ["1"]], ids=str)
def test_json_that_is_no_list_of_ids_is_refused(earlier: Path, ids: Any) -> None:
    (earlier.parent / "ids.json").write_text(json.dumps(ids))
    refused(
        tiny(forget={"name": "indices", "path": "ids.json"}), earlier, 2, "forget.path: ", "ids.json", "list of ids"
    )


@pytest.mark.parametrize(
    "ids", [np.array([0.5]), np.array([[1, 2]]), np.array(3), np.array([1, None], dtype=object)], ids=repr
)
def test_an_array_that_is_no_list_of_ids_is_refused(earlier: Path, ids: np.ndarray) -> None:
    np.save(earlier.parent / "ids.npy", ids, allow_pickle=True)
    refused(tiny(forget={"name": "indices", "path": "ids.npy"}), earlier, 2, "forget.path: ", "ids.npy", "allowed: ")


def test_an_empty_array_file_is_refused(earlier: Path) -> None:
    (earlier.parent / "ids.npy").write_bytes(b"")
    refused(tiny(forget={"name": "indices", "path": "ids.npy"}), earlier, 2, "forget.path: ", "ids.npy")


def test_ids_that_are_not_there_are_refused(earlier: Path) -> None:
    refused(tiny(forget={"name": "indices", "path": "no.txt"}), earlier, 2, "forget.path: ", "no.txt", "check the path")


def test_forget_and_retain_may_not_overlap(earlier: Path) -> None:
    (earlier.parent / "forget.json").write_text("[0, 1, 2, 3, 4]")
    (earlier.parent / "retain.json").write_text(json.dumps(list(range(3, 100))))
    forget = {"name": "indices", "path": "forget.json", "retain": "retain.json"}
    refused(tiny(forget=forget), earlier, 2, "forget: ", "2 ids are in both forget and retain, the first is 3")


# Arrays of the user's own.


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    found = {
        "x": draw.random((60, 5)).astype(np.float32),
        "y": np.arange(60) % 3,
        "tx": draw.random((30, 5)).astype(np.float32),
        "ty": np.arange(30) % 3,
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def own_arrays(folder: Path, found: dict[str, np.ndarray], **settings: Any) -> Table:
    np.savez(folder / "own.npz", **found)
    return tiny(name="own", data={"name": "arrays", "path": "own.npz", **settings})


def test_good_arrays_run(tmp_path: Path) -> None:
    whole = arrays(x=np.arange(300).reshape(60, 5), tx=np.arange(150).reshape(30, 5))
    for found in (arrays(), whole, arrays(groups=np.arange(90))):
        finished(run(own_arrays(tmp_path, found), tmp_path / "runs"))


def with_nan() -> np.ndarray:
    x = arrays()["x"].copy()
    x[7, 2] = np.nan
    return x


ARRAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "label outside the classes": ({"y": np.arange(60) % 4}, ("label 3 (example 3)", "0 to 2")),
    "negative label": ({"ty": np.arange(30) % 3 - 1}, ("label -1 (example 60)", "0 to 2")),
    "NaN": ({"x": with_nan()}, ("1 inputs are not finite", "id 7", "finite numbers", "drop")),
    "labels that are fractions": ({"y": np.arange(60) / 2}, ("forget (label_swap)", "Regression", "classes")),
    "labels that are words": ({"y": np.array(["a"] * 60), "ty": np.array(["a"] * 30)}, ("data.y", "<U1", "numbers")),
    "array missing": ({"tx": None}, ("data.path", "lacks the array 'tx'", "x, y, tx, ty")),
    "other shape": ({"tx": np.zeros((30, 4), np.float32)}, ("data.path", "[60, 5]", "[30, 4]", "first dimension only")),
    "too few labels": ({"y": np.arange(50) % 3}, ("data.inputs: ", "90 inputs but 80 targets")),
    "groups of other length": ({"groups": np.arange(5)}, ("data.groups", "[5]", "[90]")),
    "no test set": (
        {"tx": np.zeros((0, 5)), "ty": np.zeros(0, int)},
        ("test set is empty", "give the data a test set"),
    ),
    "objects": ({"y": np.array([{}] * 60)}, ("data.path", "own.npz", "plain arrays")),
}


@pytest.mark.parametrize(("changes", "words"), ARRAYS.values(), ids=ARRAYS)
def test_bad_arrays_are_refused(earlier: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(own_arrays(earlier.parent, arrays(**changes), labels=["a", "b", "c"]), earlier, 2, *words)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "other", "single", "missing"])
def test_an_array_file_that_cannot_be_read_is_refused(earlier: Path, damage: str) -> None:
    table, path = own_arrays(earlier.parent, arrays()), earlier.parent / "own.npz"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    elif damage == "other":
        path.write_text("x,y\n1,2\n")
    elif damage == "single":
        path.write_bytes(_npy(np.zeros(3)))
    else:
        path.unlink()
    refused(table, earlier, 2, "data.path: ", str(path))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# Weights of the user's own.


def weights(path: Path, hidden: int = 16) -> Path:
    """Safetensors of the spec's perceptron, untrained."""
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
    )
    save_file(net.state_dict(), path)
    return path


def with_weights(name: str) -> Table:
    return tiny(name="mine", model=MLP | {"weights": name}, seeds=[0, 1, 2])


def test_weights_of_another_architecture_are_refused(earlier: Path) -> None:
    weights(earlier.parent / "wide.safetensors", hidden=32)
    words = ("weights of another architecture", "has shape", "32", "the model's has", "2 more misfits", "model.name")
    refused(with_weights("wide.safetensors"), earlier, 2, "model.weights: ", *words)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(earlier: Path, keep: int) -> None:
    path = weights(earlier.parent / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    refused(with_weights(path.name), earlier, 2, "model.weights: ", "not a complete safetensors file", "again")


def test_weights_that_are_not_there_are_refused(earlier: Path) -> None:
    refused(with_weights("no.safetensors"), earlier, 2, "model.weights: ", "no.safetensors", "check the path")


class _Trap:
    """Loading its pickle creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "torch", "torch, old"])
def test_a_pickle_is_refused_and_never_loaded(earlier: Path, tmp_path: Path, protocol: int | str) -> None:
    sprung, path = tmp_path / "sprung", earlier.parent / "model.pt"
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps(_Trap(sprung), protocol))
    else:
        torch.save({"1.weight": _Trap(sprung)}, path, _use_new_zipfile_serialization=protocol == "torch")
    text = (
        "not a complete safetensors file" if protocol in (0, 1) else "this pickle is damaged or holds more than tensors"
    )
    refused(with_weights(path.name), earlier, 2, "model.weights: ", text)
    assert not sprung.exists()
    if isinstance(protocol, int):
        pickle.loads(path.read_bytes())
        assert sprung.exists()  # the trap itself works


def test_a_pickle_in_place_of_arrays_is_refused_and_never_loaded(earlier: Path, tmp_path: Path) -> None:
    trap = np.empty(60, dtype=object)
    trap[:] = [_Trap(tmp_path / "sprung") for _ in trap]
    refused(own_arrays(earlier.parent, arrays(y=trap)), earlier, 2, "data.path: ", "own.npz", "plain arrays")
    assert not (tmp_path / "sprung").exists()


# Code of the user's own.


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


NET = """
from torch import nn

def net(data, *, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, {outputs}))
"""


def test_an_output_of_the_wrong_width_is_refused(earlier: Path) -> None:
    module(earlier.parent, "narrow_net", NET.format(outputs=7))
    words = ("model (Sequential): ", "[8, 7]", "[batch, 10]", "last layer must have 10 outputs")
    refused(tiny(name="narrow", model={"name": "narrow_net:net"}), earlier, 2, *words)


def test_a_setting_that_a_function_does_not_take_is_refused(earlier: Path) -> None:
    module(earlier.parent, "keyword_net", NET.format(outputs=10))
    table = tiny(name="keyword", model={"name": "keyword_net:net", "widht": 3})
    refused(table, earlier, 2, "model: ", "unknown key 'widht'", "did you mean 'width'?")


@pytest.mark.parametrize("fault", ["def net(:", "import nowhere_at_all", "1 / 0", "raise RuntimeError('no')"])
def test_a_module_that_cannot_be_imported_is_refused(earlier: Path, fault: str) -> None:
    name = "broken_" + re.sub(r"\W", "", fault)
    module(earlier.parent, name, fault + "\n")
    refused(tiny(model={"name": f"{name}:net"}), earlier, 2, "model.name: ", f"{name}:net", "module:function")


def test_a_function_that_fails_is_named_with_its_line(earlier: Path) -> None:
    module(earlier.parent, "failing_net", "def net(data):\n    return 1 / 0\n")
    table = tiny(name="failing", model={"name": "failing_net:net"})
    refused(table, earlier, 2, "failing_net:net: ", "ZeroDivisionError", "line 2 of", "failing_net.py")


def test_unmet_needs_are_named_before_anything_is_trained(earlier: Path) -> None:
    module(
        earlier.parent,
        "tokens_only",
        "from dataclasses import dataclass\n"
        "from expunge.core.method import Method\n"
        "@dataclass(frozen=True)\n"
        "class TokensOnly(Method):\n"
        "    needs = frozenset({'tokens'})\n"
        "    def apply(self, student, job):\n"
        "        return student\n",
    )
    table = tiny(method=[{"name": "tokens_only:TokensOnly", "label": "mine"}])
    refused(table, earlier, 3, "method 'mine': ", "needs tokens", "choose another method")
    rem = [{"name": "rem", "label": "moved"}]
    linear = {"name": "mlp", "widths": []}
    refused(
        tiny(method=rem, model=linear), earlier, 3, "method 'moved'", "no hidden layer", 'put the block "tied_dropout"'
    )
    tied = {"name": "mlp", "widths": [8], "block": [{"name": "tied_dropout", "at": "2"}]}
    forget = {"name": "random_subset", "count": 10}
    ideal = tiny(name="ideal", method=[{"name": "rem", "ideal": True}], model=tied, forget=forget)
    refused(ideal, earlier, 3, "REM.ideal", "the task corrupts no examples", "label_swap")


def test_a_model_that_a_part_cannot_work_on_is_named_before_anything_is_trained(earlier: Path) -> None:
    """Order of units and their alignment are defined on plain chains; a transformer is none."""
    vit = {"name": "vit", "width": 8, "depth": 1, "heads": 2}
    for changes, place in (
        ({"method": [{"name": "symmetry", "label": "mine"}]}, "method 'mine': "),
        ({"audit": [{"name": "aligned_distance", "label": "mine"}]}, "audit 'mine': "),
    ):
        refused(
            tiny(model=vit, **changes), earlier, 3, place, "not a plain chain", "_VisionTransformer", "nn.Sequential of"
        )


# Failures in the middle of a run.


def test_a_rate_that_diverges_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    finished(run(tiny(audit=[]), out))
    whole = contents(out / "tiny")

    def with_rate(rate: float) -> Table:
        return tiny(audit=[], method=[*method(epochs=2), *method(label="fast", learning_rate=rate)])

    before = snapshot(out / "cache")
    result = run(with_rate(1e30), out)
    message = result.message()
    assert result.code == 4
    for word in (
        "seed 0: unlearn fast: ",
        "at step 1 ",
        "learning rate 1e+30",
        "last finite loss was ",
        "learning_rate",
    ):
        assert word in message
    last = float(re.search(r"last finite loss was ([\d.e+-]+)", message)[1])  # type: ignore[index]
    assert 0 < last < 100
    assert snapshot(out / "cache") == before
    assert {name: data for name, data in contents(out / "tiny").items() if name != "spec.json"} == {
        name: data for name, data in whole.items() if name != "spec.json"
    }
    assert temporaries(out) == []

    again = finished(run(with_rate(1e-4), out))
    assert f"{len(stages_done_in(before))} of " in again.err
    after = snapshot(out / "cache")
    assert {name: after[name] for name in before} == before


def stages_done_in(found: dict[str, tuple[str, int]]) -> set[str]:
    return {name.partition("/")[0] for name in found}


@pytest.mark.parametrize("place", [".", "tiny", "cache", "tiny/results.jsonl"])
def test_something_in_the_way_of_a_folder(tmp_path: Path, place: str) -> None:
    out = tmp_path / "runs"
    blocked = out / place
    blocked.parent.mkdir(parents=True, exist_ok=True)
    if place == "tiny/results.jsonl":
        blocked.mkdir()
    else:
        blocked.write_text("mine")
    result = run(tiny(), out)
    message = result.message()
    assert result.code == 4
    assert str(blocked if place != "." else out.resolve()) in message
    assert ("choose another folder" if place != "tiny/results.jsonl" else "check the path") in message
    assert blocked.is_dir() or blocked.read_text() == "mine"
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "the folder is not writable"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "cannot write"),
    ],
)
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    out = tmp_path / "runs"

    def deny(path: Path, *_: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(record, "open", deny, raising=False)
    result = run(tiny(), out)
    message = result.message()
    assert result.code == 4
    assert (
        words in message
        and str(out / "tiny" / "spec.json") in message
        and ("another folder" in message or "path" in message)
    )
    assert contents(out) == {}


class _FullDisk:
    """Opens files as always, but from the k-th on takes only half of what is written."""

    def __init__(self, last: int) -> None:
        self.last, self.opened = last, 0

    def __call__(self, path: Path, mode: str) -> Any:
        self.opened += 1
        file: Any = open(path, mode)  # noqa: SIM115
        if self.opened > self.last:
            write = file.write

            def half(data: bytes) -> None:
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

            file = _Writer(file, half)
        return file


class _Writer:
    def __init__(self, file: Any, write: Any) -> None:
        self.file, self.write = file, write

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_leaves_nothing_half_written_and_a_rerun_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole" / "runs"
    counter = _FullDisk(last=10**9)
    monkeypatch.setattr(record, "open", counter, raising=False)
    finished(run(tiny(), whole))
    expected, opened = contents(whole), counter.opened
    # Anywhere, and then the last files of all: rows, verdicts, manifest, page.
    moments = sorted(random.Random(5).sample(range(opened - 4), 5)) + list(range(opened - 4, opened))
    for moment in moments:
        out = tmp_path / str(moment) / "runs"
        monkeypatch.setattr(record, "open", _FullDisk(last=moment), raising=False)
        result = run(tiny(), out)
        message = result.message()
        assert (
            result.code == 4 and "the disk is full" in message and "free some space" in message and str(out) in message
        )
        assert temporaries(out) == []
        assert contents(out).items() <= expected.items()
        if moment < opened - 1:
            assert not (out / "tiny" / "report.html").exists()
        kept = len(stages_done(out))
        monkeypatch.delattr(record, "open")
        again = finished(run(tiny(), out))
        assert f"{kept} of 30 stages" in again.err or not kept
        assert contents(out) == expected


def test_a_disk_that_cannot_be_flushed_counts_as_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    result = run(tiny(), tmp_path / "runs")
    assert result.code == 4 and "the disk is full" in result.message()
    assert contents(tmp_path / "runs") == {} and temporaries(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": DIGITS | {"train": 100}}, ("another data", "data.train was 120, is 100")),
        ({"model": MLP | {"widths": [8]}}, ("another model", "model.widths was [16], is [8]")),
        ({"train": {"epochs": 3}}, ("another train", "train.epochs was 6, is 3")),
        ({"forget": {"name": "label_swap", "count": 13}}, ("another forget", "forget.count was 12, is 13")),
        ({"seeds": [0, 1, 2]}, ("with other seeds", "seeds was [0, 1], is [0, 1, 2]")),
        ({"threads": 2}, ("with other threads", "threads was 1, is 2")),
    ],
)
def test_a_folder_of_another_run_is_left_alone(earlier: Path, changes: Table, words: tuple[str, ...]) -> None:
    refused(tiny(**changes), earlier, 2, str(earlier / "tiny"), *words, "another name", "another folder")


def test_a_folder_whose_spec_is_damaged_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text('{"name": ')
    refused(tiny(), tmp_path / "runs", 2, str(folder / "spec.json"), "not the spec of a run", "another name")


def test_a_gate_that_does_not_hold_is_one(earlier: Path) -> None:
    gates = [{"method": "random_relabel", "verdict": verdict} for verdict in ("inconclusive", "erased")]
    finished(run(tiny(gate=gates[:1]), earlier))
    before = contents(earlier / "tiny")
    result = run(tiny(gate=gates), earlier)
    message = result.message()
    assert result.code == 1
    for word in ("gate for random_relabel", "the verdict is 'inconclusive'", "allowed: 'erased'"):
        assert word in message
    # The run itself went well, and its table is there to see why.
    assert "random_relabel" in result.out
    assert {n: d for n, d in contents(earlier / "tiny").items() if n != "spec.json"} == {
        n: d for n, d in before.items() if n != "spec.json"
    }
    as_json = run(tiny(gate=gates), earlier, "--json")
    assert as_json.code == 1 and json.loads(as_json.out)["status"] == "done"


def test_relative_paths_count_from_the_spec_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "specs" / "ids.txt").write_text("3 4 5 6")
    spec = write_spec(tmp_path / "specs", tiny(forget={"name": "indices", "path": "ids.txt"}))
    monkeypatch.chdir(tmp_path / "elsewhere")
    finished(cli("run", spec, "--workers", 1))
    assert (tmp_path / "elsewhere" / "runs" / "tiny" / "manifest.json").is_file()
    assert Path.cwd() == tmp_path / "elsewhere"
