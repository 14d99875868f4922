"""`expunge unlearn` and `expunge audit`: one verb at a time on a model of the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.base.spec import read
from expunge.base.spec_tables import RESERVED
from expunge.pipeline.verbs import audit_of
from expunge.reporting.record import Run
from expunge.reporting.tables import cost_table
from helpers import cli, finished, tiny, toml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with the user's weights: those of an original that an ordinary run trained."""
    path = tmp_path_factory.mktemp("own")
    (path / "first.toml").write_text(toml(tiny(name="first", seeds=[0], attack=[], audit=[])))
    finished(cli("run", path / "first.toml", "--out", path / "runs", "--workers", "1"))
    (path / "mine.safetensors").write_bytes((path / "runs/first/models/original-s0.safetensors").read_bytes())
    model = {**tiny()["model"], "weights": "mine.safetensors"}
    (path / "own.toml").write_text(toml(tiny(name="own", seeds=[0, 1, 2], model=model)))
    return path


def test_unlearn_writes_weights_that_audit_judges(folder: Path) -> None:
    saved, runs = folder / "done.safetensors", folder / "runs"
    done = finished(cli("unlearn", folder / "own.toml", "--save", saved, "--out", runs, "--json"))
    assert json.loads(done.out)["gradients"] > 0
    before, after = load_file(folder / "mine.safetensors"), load_file(saved)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)

    judged = finished(cli("audit", folder / "own.toml", saved, "--out", runs, "--workers", "1", "--json"))
    found = json.loads(judged.out)
    assert [verdict["model"] for verdict in found["verdicts"]] == ["done"]
    # What unlearning cost elsewhere is not known, which is not the same as free.
    record, told = runs / "own-done", finished(cli("audit", folder / "own.toml", saved, "--out", runs)).err
    assert next(line for line in told.splitlines() if line.startswith("unlearn done")).endswith("-")
    manifest = json.loads((record / "manifest.json").read_text())
    assert {stage["gradients"] for stage in manifest["stages"] if stage["kind"] == "unlearn"} == {None}
    [row] = json.loads(finished(cli("report", "--leaderboard", record, "--json")).out)
    assert row["cost"] is None and row["utility"] is not None
    lines = {line["model"]: line["cells"] for line in cost_table(Run.open(record))["lines"]}
    assert [cell["value"] for cell in lines["done"]] == ["", "", ""]
    finished(cli("verify", record))
    # The same weights get the same numbers, whichever verb made them.
    whole = finished(cli("run", folder / "own.toml", "--out", runs, "--workers", "1", "--json"))
    values = {name: [r["value"] for r in rows if r["model"] == name] for name, rows in (
        ("done", found["rows"]), ("random_relabel", json.loads(whole.out)["rows"]))}  # fmt: skip
    assert values["done"] == values["random_relabel"]


def test_a_method_that_the_spec_lacks_is_named(folder: Path) -> None:
    result = cli("unlearn", folder / "own.toml", "--method", "random_relabl", "--out", folder / "runs")
    assert result.code == 2
    assert "did you mean 'random_relabel'?" in result.message()


@pytest.mark.parametrize("stem", ["reference", "original", "my model (2)", "x" * 200, "..", "Ünlearned"])
def test_a_model_is_judged_whatever_its_file_is_called(folder: Path, stem: str) -> None:
    """The label `reference` once made an audit end with exit code 0 and no verdict."""
    spec = read(folder / "own.toml")
    [entry] = audit_of(spec, folder / f"{stem}.safetensors").method
    assert entry.label not in RESERVED and re.fullmatch(r"[A-Za-z0-9][\w.-]{0,59}", entry.label, re.ASCII)


def test_an_audit_of_a_file_called_reference_ends_with_a_verdict(folder: Path) -> None:
    named = folder / "reference.safetensors"
    named.write_bytes((folder / "mine.safetensors").read_bytes())
    judged = json.loads(finished(cli("audit", folder / "own.toml", named, "--out", folder / "runs", "--json")).out)
    assert [verdict["model"] for verdict in judged["verdicts"]] == ["audited-reference"]


def test_audit_needs_the_original(folder: Path) -> None:
    result = cli("audit", folder / "first.toml", folder / "mine.safetensors", "--out", folder / "runs")
    assert result.code == 2
    assert "weights" in result.message()


@pytest.mark.parametrize("damage", ["missing", "pickle", "other"])
def test_a_bad_model_file_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.safetensors"
    if damage == "pickle":
        torch.save(torch.nn.Linear(2, 2), path)
    elif damage == "other":
        save_file({"a": torch.zeros(1)}, path)
    result = cli("audit", folder / "own.toml", path, "--out", tmp_path / "runs", "--workers", "1")
    assert result.code == 2
    assert {"missing": "check the path", "pickle": "pickle", "other": "another architecture"}[
        damage
    ] in result.message()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    assert "_EXPUNGE_COMPLETE" in finished(cli("completion", shell)).out


def test_diagnose_foretells_what_retrained_models_will_know(tmp_path: Path) -> None:
    """Wrong labels that nobody can infer: nets that did not see them are wrong, and so are references."""
    forget = {"name": "label_swap", "count": 40}
    data, train = {"name": "digits", "train": 400, "test": 200}, {"epochs": 100, "learning_rate": 0.01}
    model = {"name": "mlp", "widths": [64]}
    table = tiny(name="deep", data=data, model=model, train=train, forget=forget, method=[], attack=[], audit=[])
    (tmp_path / "deep.toml").write_text(toml(table | {"diagnostic": [{"name": "memorization"}]}))
    found = json.loads(finished(cli("diagnose", tmp_path / "deep.toml", "--out", tmp_path / "runs", "--json")).out)
    estimates = list(found["diagnostics"]["memorization"].values())
    known, predicted, expected, retain, seldom, mostly = (entry["value"] for entry in estimates)
    # A share below a bound and one above another, of a mean between.
    assert 0.75 * mostly <= predicted <= 1 - 0.75 * seldom
    assert known > 0.5
    assert retain > 0.6
    assert expected == pytest.approx(known - predicted)

    ran = finished(cli("run", tmp_path / "deep.toml", "--out", tmp_path / "runs", "--workers", "1", "--json"))
    rows = [row for row in json.loads(ran.out)["rows"] if (row["model"], row["metric"]) == ("reference", "accuracy")]
    measured = next(row["value"] for row in rows if row["split"] == "forget" and row["seed"] is None)
    # Both are near 0; 32 held-out examples and two seeds leave an error of about 0.05.
    assert abs(predicted - measured) < 0.12


def test_diagnose_runs_what_the_spec_names(tmp_path: Path) -> None:
    table = tiny(diagnostic=[{"name": "memorization", "label": "few", "nets": 2}, {"name": "memorization", "nets": 3}])
    (tmp_path / "named.toml").write_text(toml(table))
    done = finished(cli("diagnose", tmp_path / "named.toml", "--out", tmp_path / "runs", "--json"))
    found = json.loads(done.out)
    assert list(found["diagnostics"]) == ["few", "memorization"] == list(found["sentences"])
    shares = [
        diagnostic["C-score of the forget set (what a retrained model should know)"]
        for diagnostic in found["diagnostics"].values()
    ]
    assert shares[0] != shares[1]
    assert all(sentence.startswith("The original knows ") for sentence in found["sentences"].values())


def test_a_diagnostic_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(toml(tiny(diagnostic=[{"name": "memorisation"}])))
    for verb in ("diagnose", "run"):
        result = cli(verb, tmp_path / "bad.toml", "--out", tmp_path / "runs")
        assert result.code == 2
        assert "diagnostic[0]" in result.message() and "did you mean 'memorization'?" in result.message()


def test_diagnosis_is_kept(folder: Path) -> None:
    spec = folder / "own.toml"
    first = finished(cli("diagnose", spec, "--out", folder / "runs"))
    second = finished(cli("diagnose", spec, "--out", folder / "runs"))
    assert first.out == second.out
    assert "are already done" in second.err


def test_what_is_not_for_this_case_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    data, forget = (
        {"name": "python_docs", "train": 20, "test": 10, "context": 12},
        {"name": "random_subset", "count": 4},
    )
    model = {"name": "gpt", "width": 8, "layers": 1, "heads": 2}
    bare = tiny(name="text", data=data, model=model, train={"epochs": 1}, forget=forget, method=[], attack=[], audit=[])
    (tmp_path / "bare.toml").write_text(toml(bare))
    done = finished(cli("diagnose", tmp_path / "bare.toml", "--out", tmp_path / "runs", "--json"))
    assert "coherence" in json.loads(done.out)["diagnostics"]
    assert not {"hardness", "memorization"} & json.loads(done.out)["diagnostics"].keys()
    assert "left out: memorization: the data ship no C-scores" in done.err and "6 diagnostics: up to " in done.err
    assert done.err.index("6 diagnostics: up to ") < done.err.index("left out: seed 0: diagnostic original hardness")
    assert "[1/7] seed 0: original" in done.err and "[2/7] " in done.err and "/1]" not in done.err
    assert "vocabulary" in done.err
    (tmp_path / "named.toml").write_text(toml(bare | {"diagnostic": [{"name": "hardness"}]}))
    result = cli("diagnose", tmp_path / "named.toml", "--out", tmp_path / "runs")
    assert result.code == 3 and "vocabulary" in result.message()


def test_diagnostics_look_at_the_plan_of_the_spec(tmp_path: Path) -> None:
    """Descent with ascent by SGD is the plan; what a diagnostic's own table says of it stays, and Adam is none."""
    ascent = {"name": "neggrad_plus", "optimizer": "sgd", "learning_rate": 0.3, "alpha": 0.75}
    diagnostics = [{"name": "hardness"}, {"name": "stability_limit", "learning_rate": 0.125}]
    (tmp_path / "plan.toml").write_text(toml(tiny(method=[{"name": "npo"}, ascent], diagnostic=diagnostics)))
    done = finished(cli("diagnose", tmp_path / "plan.toml", "--out", tmp_path / "runs", "--json"))
    told = json.loads(done.out)["sentences"]
    assert "alpha = 0.75, learning_rate = 0.3" in told["hardness"]
    assert "alpha = 0.75, learning_rate = 0.125" in told["stability_limit"]
    (tmp_path / "adam.toml").write_text(toml(tiny(method=[{"name": "npo"}], diagnostic=diagnostics[:1])))
    other = finished(cli("diagnose", tmp_path / "adam.toml", "--out", tmp_path / "runs", "--json"))
    assert "use their default settings" in other.err and "learning_rate = 0.3" not in other.out


def test_a_model_in_which_nothing_can_be_trained_is_refused(tmp_path: Path) -> None:
    (tmp_path / "still_model.py").write_text(
        "from torch import nn\n\n\ndef build(data):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)\n"
    )
    (tmp_path / "still.toml").write_text(toml(tiny(model={"name": "still_model:build"})))
    for arguments in (("diagnose",), ("run", "--dry-run")):
        result = cli(*arguments, tmp_path / "still.toml", "--out", tmp_path / "runs")
        assert result.code == 2 and "no parameter takes a gradient" in result.message()
