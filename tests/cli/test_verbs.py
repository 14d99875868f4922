"""Every verb, in words and in JSON, and what it may not do: import torch to print a list."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from expunge.base import registry
from expunge.base.record import file_digest
from expunge.cli import cli as command
from expunge.reporting.names import PRESETS
from helpers import Result, cli, contents, finished, run, snapshot, tiny, write_spec

KINDS = ("data", "model", "block", "task", "method", "attack", "audit")


def in_process(*arguments: str) -> tuple[Result, set[str]]:
    """A fresh interpreter, and which heavy modules it has imported by the end."""
    code = (
        "import sys\nfrom expunge.cli import main\ncode = 0\n"
        "try: main()\nexcept SystemExit as left: code = left.code\n"
        "heavy = {'torch', 'scipy', 'sklearn', 'matplotlib', 'expunge.pipeline'} & set(sys.modules)\n"
        "print('\\nHEAVY', *heavy, file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    said, _, heavy = done.stderr.rpartition("HEAVY")
    return Result(done.returncode, done.stdout, said), set(heavy.split())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for runs after one run."""
    path = tmp_path_factory.mktemp("verbs") / "runs"
    finished(run(tiny(), path))
    return path


@pytest.fixture
def record(out: Path, tmp_path: Path) -> Path:
    """A copy of a run's folder, to be damaged."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, content in {
        **contents(out / "tiny"),
        "manifest.json": (out / "tiny" / "manifest.json").read_bytes(),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "env.json").write_bytes((out / "tiny" / "env.json").read_bytes())
    return folder


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("list",), ("list", "methods", "--json"), ("run", "--help"), ("doctor", "--help")],
)
def test_what_needs_no_torch_imports_none(arguments: tuple[str, ...]) -> None:
    result, heavy = in_process(*arguments)
    assert result.code == 0 and result.out
    assert heavy == set()


def test_a_bad_spec_is_told_without_torch(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text('name = "a"\nseed = [1]\n')
    result, heavy = in_process("run", str(tmp_path / "spec.toml"))
    assert result.code == 2 and "did you mean 'seeds'?" in result.err
    assert heavy == set()


def test_verify_needs_no_torch(out: Path) -> None:
    result, heavy = in_process("verify", str(out / "tiny"))
    assert result.code == 0, result.err
    assert "torch" not in heavy and "expunge.pipeline" not in heavy


def test_report_and_compare_need_no_torch(out: Path, tmp_path: Path) -> None:
    page = out / "tiny" / "report.html"
    page.unlink()
    result, heavy = in_process("report", str(out / "tiny"))
    assert result.code == 0, result.err
    assert result.out.strip() == str(page) and page.is_file()
    assert "torch" not in heavy
    result, heavy = in_process("compare", str(out / "tiny"), str(out / "tiny"), "--out", str(tmp_path / "c.html"))
    assert result.code == 0, result.err
    assert "random_relabel" in result.out and (tmp_path / "c.html").is_file()
    assert "torch" not in heavy


def test_report_and_compare_as_json(out: Path, tmp_path: Path) -> None:
    run = str(out / "tiny")
    [written] = json.loads(finished(cli("report", run, "--json")).out)
    assert written == {"run": run, "report": str(out / "tiny" / "report.html")}
    [row] = json.loads(finished(cli("report", "--leaderboard", run, "--json")).out)
    assert row["method"] == "random_relabel" and row["attack"] == "relearn"
    assert finished(cli("report", "--leaderboard", run, run)).out.count("random_relabel") == 2
    found = json.loads(finished(cli("compare", run, run, "--out", str(tmp_path / "c.html"), "--json")).out)
    assert found["settings"] == [] and found["runs"] == [run, run]
    assert {row["difference"]["value"] for row in found["rows"]} == {0.0}


def test_compare_of_what_cannot_be_compared_is_refused(out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(out / "tiny", other)
    spec = json.loads((other / "spec.json").read_text())
    (other / "spec.json").write_text(json.dumps(spec | {"forget": {"name": "label_swap", "count": 13}}))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["spec.json"] = file_digest(other / "spec.json")
    (other / "manifest.json").write_text(json.dumps(manifest))
    result = cli("compare", str(out / "tiny"), str(other), "--out", str(tmp_path / "c.html"))
    assert result.code == 2 and "forget.count differ: 12 and 13" in result.err
    assert not (tmp_path / "c.html").exists()
    assert cli("report", str(tmp_path)).code == 2
    assert cli("report").code == 2


# list


def test_list_names_every_part_of_every_kind() -> None:
    text = finished(cli("list")).out
    found = json.loads(finished(cli("list", "--json")).out)
    assert set(KINDS) <= found.keys()
    for kind in KINDS:
        assert [part["name"] for part in found[kind]] == registry.names(kind) and found[kind]
        for part in found[kind]:
            assert f"{part['name']} " in text and part["summary"] and part["summary"] in text


@pytest.mark.parametrize("word", ["method", "methods"])
def test_list_of_one_kind(word: str) -> None:
    found = json.loads(finished(cli("list", word, "--json")).out)
    assert list(found) == ["method"] and {"retrain", "random_relabel"} <= {p["name"] for p in found["method"]}
    text = finished(cli("list", word)).out
    assert text.startswith("methods\n") and "  retrain " in text and "attacks" not in text
    cost = next(p["cost"] for p in found["method"] if p["name"] == "retrain")
    assert cost == "one gradient per retain example and epoch of training." and cost not in text


def test_methods_are_a_table_that_fits_the_terminal() -> None:
    parts = json.loads(finished(cli("list", "methods", "--json")).out)["method"]
    lines = finished(cli("list", "methods")).out.splitlines()
    heads = lines[1]
    assert heads.split() == ["name", "year", "paper", "needs", "cost"] and max(map(len, lines)) <= 100
    starts = [heads.index(word) for word in heads.split()]
    assert len(parts) >= 30
    for part, line in zip(parts, lines[2:], strict=False):
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert cells == [part["name"], str(part["year"] or ""), part["paper"], part["needs"], part["effort"]]
        assert part["effort"] and not part["paper"][-4:].isdigit()
    assert {p["name"]: p["year"] for p in parts}["npo"] == 2024


def test_a_kind_that_is_not_there_is_refused_with_the_nearest() -> None:
    result = cli("list", "metods")
    assert result.code == 2 and result.out == ""
    for word in ("list: ", "unknown kind 'metods'", "audits", "did you mean 'methods'?"):
        assert word in result.message()


# show and cite


def test_show_tells_settings_with_defaults_and_docs() -> None:
    text = finished(cli("show", "random_relabel")).out
    for word in (
        "random_relabel (method)",
        "weight = 1.0",
        "Weight of the forget loss.",
        "learning_rate = ",
        "Step size",
    ):
        assert word in text


def test_show_as_json() -> None:
    [found] = json.loads(finished(cli("show", "retrain", "--json")).out)
    assert found["kind"] == "method" and found["needs"] == ["recipe"] and found["settings"] == []
    [found] = json.loads(finished(cli("show", "mlp", "--json")).out)
    assert {s["name"]: s["default"] for s in found["settings"]} == {
        "widths": [256, 128],
        "dropout": 0.0,
    }


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in registry.names(kind)])
def test_every_part_can_be_shown_and_cited(kind: str, name: str) -> None:
    text = finished(cli("show", name)).out
    assert f"{name} ({kind})" in text and "\n" in text
    assert finished(cli("cite", name)).code == 0


def test_cite_prints_bibtex() -> None:
    assert finished(cli("cite", "random_relabel")).out.startswith("@inproceedings{graves2021amnesiac")
    found = json.loads(finished(cli("cite", "random_relabel", "--json")).out)
    assert found["name"] == "random_relabel" and found["bibtex"][0].startswith("@")


def test_cite_prints_each_source_of_a_name_once() -> None:
    """`rem` is a method with two sources, and a study with one of these."""
    text = finished(cli("cite", "rem")).out
    assert [line for line in text.splitlines() if line.startswith("@")] == [
        "@article{schoepf2025rem,",
        "@inproceedings{maini2023localized,",
    ]
    assert json.loads(finished(cli("cite", "rem", "--json")).out)["bibtex"] == text.strip().split("\n\n")


def test_a_part_without_paper_prints_nothing_on_stdout() -> None:
    result = finished(cli("cite", "digits"))
    assert result.out == "" and "digits" in result.err
    assert json.loads(finished(cli("cite", "digits", "--json")).out) == {"name": "digits", "bibtex": []}


@pytest.mark.parametrize("verb", ["show", "cite"])
def test_a_name_that_is_not_there_is_refused_with_the_nearest(verb: str) -> None:
    result = cli(verb, "random_relable")
    assert result.code == 2 and result.out == ""
    assert "unknown name 'random_relable'" in result.message()
    told = result.message()
    assert "did you mean 'random_relabel'?" in told and told.startswith("expunge: unknown name")
    nearest, allowed = told.split("; allowed: ")
    assert nearest.endswith("?"), "behind 75 names nobody finds it"
    names = allowed.strip().split(", ")
    assert len(names) == len(set(names)) > 50


# completion


@pytest.mark.parametrize(
    ("words", "begun", "found"),
    [
        (["show"], "scr", {"scrub"}),
        (["cite"], "rem", {"rem", "remove_modes"}),
        (["list"], "", set(registry.FOLDERS.values())),
        (["study"], "", set(registry.names("study"))),
        (["study", "rem", "--preset"], "", {"quick", "cpu", "long", "paper"}),
    ],
)
def test_names_are_completed(words: list[str], begun: str, found: set[str]) -> None:
    completer = BashComplete(command, {}, "expunge", "_EXPUNGE_COMPLETE")
    assert {item.value for item in completer.get_completions(words, begun)} == found


def test_presets_that_are_completed_are_those_of_the_studies() -> None:
    assert all(set(registry.load("study", name).presets) == set(PRESETS) for name in registry.names("study"))


# run


def test_run_prints_the_table_on_stdout_and_progress_on_stderr(out: Path) -> None:
    result = finished(run(tiny(), out))
    assert "random_relabel" in result.out and "inconclusive" in result.out
    assert "30 of 30 stages are already done" in result.err and str(out / "tiny") in result.err
    assert "stages" not in result.out and str(out) not in result.out


def test_the_next_command_reads_the_spec_wherever_it_is(out: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "a folder", tiny())
    lines = finished(cli("run", spec, "--out", out, "--workers", 1)).err.splitlines()
    program, *words = shlex.split(next(line for line in lines if line.startswith("next")).removeprefix("next"))
    assert program == "expunge" and words[:2] == ["run", str(spec)]
    finished(cli(*words, "--out", out, "--dry-run"))


def test_run_as_json_is_one_object_with_every_row(out: Path) -> None:
    found = json.loads(finished(run(tiny(), out, "--json")).out)
    assert found["run"] == str(out / "tiny") and found["status"] == "done"
    stored = [json.loads(line) for line in (out / "tiny" / "results.jsonl").read_text().splitlines()]
    assert found["rows"] == stored
    assert found["verdicts"] == json.loads((out / "tiny" / "verdicts.json").read_text())


@pytest.mark.parametrize(
    ("options", "place", "value"),
    [
        (["train.epochs=7"], ("train", "epochs"), 7),
        (["train.learning_rate=1"], ("train", "learning_rate"), 1.0),
        (["method.random_relabel.epochs=1"], ("method", 0, "epochs"), 1),
        (["method.0.epochs=1"], ("method", 0, "epochs"), 1),
        (["method.second.epochs=1"], ("method", 1, "epochs"), 1),
        (["method.random_relabel.label=first", "method.first.epochs=1"], ("method", 0, "epochs"), 1),
        (["attack.relearn.k=1", "attack.relearn.k=2"], ("attack", 0, "k"), 2),
        (["model.widths=[8, 8]"], ("model", "widths"), [8, 8]),
        (["name=renamed"], ("name",), "renamed"),
        (['name="quoted"'], ("name",), "quoted"),
    ],
)
def test_set_reaches_values_by_key_label_name_and_position(
    tmp_path: Path, options: list[str], place: tuple[str | int, ...], value: object
) -> None:
    methods = [{"name": "random_relabel", "epochs": 2}, {"name": "random_relabel", "label": "second", "epochs": 2}]
    arguments = [word for option in options for word in ("--set", option)]
    finished(run(tiny(seeds=[0], method=methods), tmp_path / "runs", *arguments))
    [path] = (tmp_path / "runs").glob("*/spec.json")
    found = json.loads(path.read_text())
    for step in place:
        found = found[step]
    assert found == value


def test_run_takes_functions_and_classes_that_lie_beside_the_spec_file(tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text(
        "import copy\n"
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "from expunge.core.case import Cost, Unlearned\n"
        "from expunge.core.problem import Problem\n"
        "from expunge.methods.finetune import Finetune\n\n"
        "def net(data, *, width=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n\n"
        "def first(data, seed, measured, *, count):\n"
        "    return Problem(data, data.train[:count], data.train[count:], data.test)\n\n"
        "def nothing(model, problem, recipe, seed, budget, *, note=''):\n"
        "    return Unlearned(copy.deepcopy(model), 'nothing', Cost(0, 0.0))\n\n"
        "@dataclass(frozen=True)\n"
        "class Slow(Finetune):\n"
        "    learning_rate: float = 1e-5\n"
    )
    table = tiny(
        seeds=[0],
        attack=[],
        model={"name": "my_parts:net", "width": 12},
        forget={"name": "my_parts:first", "count": 10},
        method=[{"name": "my_parts:nothing", "note": "x"}, {"name": "my_parts:Slow", "label": "slow", "epochs": 1}],
    )
    finished(run(table, tmp_path / "runs"))
    folder = tmp_path / "runs" / "tiny"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {"original", "reference", "my_parts.nothing", "slow"}

    def scores(model: str) -> dict[str, float]:
        return {
            f"{r['metric']} {r['split']}": r["value"]
            for r in rows
            if (r["model"], r["seed"], r["attack"]) == (model, 0, None)
        }

    assert scores("my_parts.nothing") == scores("original") != scores("slow")
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["model"] == {"name": "my_parts:net", "width": 12}
    assert spec["method"][1]["label"] == "slow" and spec["method"][1]["learning_rate"] == 1e-5
    # In worker processes the module is found too.
    code = [sys.executable, "-c", "from expunge.cli import main; main()"]
    spec_file, again = str(tmp_path / "spec.toml"), tmp_path / "again"
    done = subprocess.run(
        [*code, "run", spec_file, "--out", str(again), "--workers", "2"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert contents(again) == contents(tmp_path / "runs")


def test_a_gate_that_holds_is_zero(out: Path) -> None:
    finished(run(tiny(gate=[{"method": "random_relabel", "verdict": "inconclusive"}]), out))


def test_a_reader_that_has_gone_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from expunge.cli import main; main()", "list", "--json"]
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


# verify


def test_verify_passes_on_what_run_wrote(out: Path, record: Path) -> None:
    before = snapshot(out)
    found = json.loads(finished(cli("verify", out / "tiny", "--json")).out)
    assert found["run"] == str(out / "tiny") and found["status"] == "verified"
    assert found["digests"] > 30 and found["rows"] > 30 and found["verdicts"] == 1
    assert "agree" in finished(cli("verify", out / "tiny")).out
    finished(cli("verify", record))
    assert snapshot(out) == before


@pytest.mark.parametrize("position", [0, 100, -1])
def test_verify_names_a_file_of_which_one_byte_has_changed(record: Path, position: int) -> None:
    path = record / "scores" / "random_relabel-s0-relearn-loss.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    result = cli("verify", record)
    assert result.code == 4 and str(path) in result.message() and "changed" in result.message()


@pytest.mark.parametrize("name", ["models/original-s0.safetensors", "curves/reference-s0-relearn.safetensors"])
def test_verify_names_a_file_that_is_missing(record: Path, name: str) -> None:
    (record / name).unlink()
    result = cli("verify", record)
    assert result.code == 4 and str(record / name) in result.message() and "missing" in result.message()


@pytest.mark.parametrize("name", ["results.jsonl", "verdicts.json"])
def test_verify_names_a_result_that_was_edited(record: Path, name: str) -> None:
    path = record / name
    text = path.read_text()
    changed = (
        text.replace('"value": 0', '"value": 1', 1)
        if name == "results.jsonl"
        else text.replace("inconclusive", "erased", 1)
    )
    assert changed != text
    path.write_text(changed)
    result = cli("verify", record)
    assert result.code == 4 and str(path) in result.message()
    # A digest made to fit does not help: rows and verdicts follow from the scores.
    manifest = json.loads((record / "manifest.json").read_text())
    manifest["files"][name] = file_digest(path)
    (record / "manifest.json").write_text(json.dumps(manifest))
    result = cli("verify", record)
    assert result.code == 4 and str(path) in result.message() and "allowed: " in result.message()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1, "stages": [{}]}'])
def test_verify_refuses_a_damaged_manifest(record: Path, content: str) -> None:
    (record / "manifest.json").write_text(content)
    result = cli("verify", record)
    assert result.code == 4 and "manifest" in result.message()


def test_verify_refuses_a_folder_that_holds_no_run(tmp_path: Path, out: Path) -> None:
    result = cli("verify", tmp_path)
    assert result.code == 2 and str(tmp_path) in result.message() and "no run" in result.message()
    result = cli("verify", tmp_path / "nowhere")
    assert result.code == 2 and "nowhere" in result.message()


def test_verify_refuses_a_run_that_has_not_finished(record: Path) -> None:
    (record / "spec.json").write_text("{}")
    (record / "manifest.json").unlink()
    result = cli("verify", record)
    assert result.code == 2 and "not finished" in result.message()


def test_the_help_of_list_names_every_kind() -> None:
    told = finished(cli("list", "--help")).out
    assert all(folder in told for folder in registry.FOLDERS.values())
