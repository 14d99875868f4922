"""What a run leaves behind, what a change of the spec computes anew, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.audits.loss import Loss
from expunge.base.record import file_digest
from expunge.base.spec import parse
from expunge.base.user_code import add_search_path
from expunge.pipeline.folder import environment
from expunge.pipeline.plan import Plan
from helpers import Table, cli, contents, finished, run, snapshot, stages_done, temporaries, tiny


def stored(out: Path) -> dict[str, tuple[str, int]]:
    return snapshot(out / "cache")


def new_stages(table: Table, out: Path) -> list[str]:
    """Names of the stages that a run had to compute; none of those that were there has changed."""
    before, done = stored(out), stages_done(out)
    finished(run(table, out))
    after = stored(out)
    assert {name: after[name] for name in before} == before
    facts = [(out / "cache" / key / "stage.json").read_text() for key in stages_done(out) - done]
    return sorted(json.loads(text)["stage"] for text in facts)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for runs after one run."""
    path = tmp_path / "runs"
    finished(run(tiny(), path))
    return path


def test_the_record_is_complete_and_its_digests_are_those_of_the_files(out: Path) -> None:
    folder = out / "tiny"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["models"] == ["original", "reference", "random_relabel"]
    assert manifest["seeds"] == [0, 1] and manifest["attacks"] == ["relearn"]
    assert len(manifest["stages"]) == 30 == len(stages_done(out))
    named = {file["path"]: file["sha256"] for stage in manifest["stages"] for file in stage["files"].values()}
    named |= manifest["files"]
    assert {name: file_digest(folder / name) for name in named} == named
    extra = {"events.jsonl", "manifest.json", "report.html"}
    assert set(snapshot(folder)) == set(named) | extra
    newest = max(folder.glob("*.json*"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "manifest.json"
    assert temporaries(out) == []


def test_the_record_says_which_version_of_each_part_made_the_numbers(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits = {"performance": 3, "loss": 1}
    parts = {
        "data": {"digits": 1},
        "objective": {"classification": 1},
        "model": {"mlp": 1},
        "forget": {"label_swap": 1},
    }
    parts |= {"method": {"random_relabel": 2}, "attack": {"relearn": 2}}
    assert json.loads((out / "tiny" / "manifest.json").read_text())["versions"] == parts | {"audit": audits}
    monkeypatch.setattr(Loss, "version", 5)
    table = tiny(audit=[{"name": "loss", "label": "nats"}])
    other = tmp_path / "other" / "runs"
    finished(run(table, other))
    found = json.loads((other / "tiny" / "manifest.json").read_text())["versions"]
    assert found == parts | {"audit": audits | {"loss": 5}}
    refused = cli("compare", out / "tiny", other / "tiny", "--out", tmp_path / "page.html")
    assert refused.code == 2 and "audit 'loss' has version 1" in refused.message()


def test_models_scores_and_curves_are_there_under_readable_names(out: Path) -> None:
    names = set(snapshot(out / "tiny"))
    assert {
        "models/original-s0.safetensors",
        "models/reference-s1.safetensors",
        "models/random_relabel-s1-relearn.safetensors",
        "scores/original-s0-performance.safetensors",
        "scores/random_relabel-s0-relearn-loss.safetensors",
        "curves/reference-s0-relearn.safetensors",
    } <= names


def test_the_spec_in_the_record_has_every_value_given_or_default(out: Path) -> None:
    spec = json.loads((out / "tiny" / "spec.json").read_text())
    assert spec["train"]["epochs"] == 6 and spec["train"]["batch_size"] == 128
    assert spec["method"][0]["name"] == "random_relabel" and spec["method"][0]["weight"] == 1.0
    assert Plan(parse(spec, out)).resolved() == spec


def test_the_environment_names_what_numbers_depend_on(out: Path) -> None:
    found = json.loads((out / "tiny" / "env.json").read_text())
    counts = {"forget": 12, "retain": 108, "test": 60, "holdout": 0}
    assert found == {**environment(), "device": "cpu", "precision": "float32", "counts": counts}
    assert {"python", "system", "machine", "packages", "commit"} <= found.keys()
    assert {"expunge", "torch", "numpy"} <= found["packages"].keys()


def test_events_are_appended_one_line_a_stage(out: Path) -> None:
    def events() -> list[Table]:
        return [json.loads(line) for line in (out / "tiny" / "events.jsonl").read_text().splitlines()]

    assert len(events()) == 30
    finished(run(tiny(method=[{"name": "retrain"}]), out))
    assert len(events()) == 30 + 2 * (1 + 2 + 1 + 2)
    assert all({"at", "what", "seconds"} <= event.keys() for event in events())


def test_the_same_again_computes_nothing_and_ends_the_same(out: Path) -> None:
    before = contents(out)
    assert new_stages(tiny(), out) == []
    assert contents(out) == before


def test_another_method_computes_its_own_stages_only(out: Path) -> None:
    rows = rows_of(out)
    found = new_stages(tiny(method=[{"name": "random_relabel", "epochs": 2}, {"name": "retrain"}]), out)
    assert len(found) == 2 * (1 + 2 + 1 + 2) and all("retrain" in name for name in found)
    assert [row for row in rows_of(out) if row["model"] != "retrain"] == rows


def test_another_audit_computes_its_own_stages_only(out: Path) -> None:
    rows = rows_of(out)
    found = new_stages(tiny(audit=[{"name": "loss"}, {"name": "path"}]), out)
    assert found and all(name.rpartition(" ")[2] == "path" and ": audit " in name for name in found)
    kept = {row["metric"] for row in rows}
    assert [row for row in rows_of(out) if row["metric"] in kept] == rows


def test_another_attack_computes_its_own_stages_only(out: Path) -> None:
    attacks = [{"name": "relearn", "epochs": 2}, {"name": "relearn", "label": "k2", "k": 2}]
    found = new_stages(tiny(attack=attacks), out)
    assert found and all("k2" in name for name in found)


def rows_of(out: Path) -> list[Table]:
    return [json.loads(line) for line in (out / "tiny" / "results.jsonl").read_text().splitlines()]


def test_fewer_methods_leave_the_others_rows_as_they_are(out: Path) -> None:
    before = [row for row in rows_of(out) if row["model"] != "random_relabel"]
    assert new_stages(tiny(method=[]), out) == []
    assert rows_of(out) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"gate": [{"method": "random_relabel", "verdict": "inconclusive"}]},
        {"method": [{"name": "random_relabel", "epochs": 2, "label": "renamed"}]},
        {"attack": [{"name": "relearn", "epochs": 2, "label": "again"}]},
        {"audit": [{"name": "loss", "label": "nats"}]},
        {"audit": [{"name": "loss", "required": True}]},
        {"train": {"learning_rate": 1e-2, "epochs": 6, "batch_size": 128, "final": 1}},
        dict(reversed(tiny().items())),
    ],
    ids=["name", "gate", "method's label", "attack's label", "audit's label", "required", "defaults", "order"],
)
def test_what_changes_no_number_computes_nothing(out: Path, changes: Table) -> None:
    assert new_stages(tiny(**changes), out) == []


def test_comments_and_layout_compute_nothing(out: Path) -> None:
    spec = out.parent / "spec.toml"
    before, text = contents(out), spec.read_text()
    spec.write_text("# A note.\n\n" + text.replace(" = ", "  =  ").replace("\n", "   # why\n", 1))
    assert spec.read_text() != text
    finished(cli("run", spec, "--out", out, "--workers", 1))
    assert contents(out) == before and len(stages_done(out)) == 30


def test_a_label_is_no_part_of_the_numbers(tmp_path: Path) -> None:
    """Fresh caches, so that the second cannot take the first one's numbers."""
    found = []
    for label in ("one", "two"):
        out = tmp_path / label / "runs"
        attack, audit = {"name": "relearn", "label": label, "epochs": 2}, {"name": "loss", "label": label + "s"}
        finished(run(tiny(seeds=[0], attack=[attack], audit=[audit]), out))
        found.append([row | {"attack": row["attack"] and "any"} for row in rows_of(out)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"train": {"epochs": 3, "learning_rate": 0.01}}, 0),
        ({"data": {"name": "digits", "train": 110, "test": 60}}, 0),
        ({"forget": {"name": "label_swap", "count": 11}}, 0),
        ({"threads": 2}, 0),
        ({"seeds": [1, 2]}, 15),
        ({"method": [{"name": "random_relabel", "epochs": 1}]}, 18),
        ({"method": [{"name": "random_relabel", "epochs": 2, "budget": 100}]}, 18),
        ({"attack": [{"name": "relearn", "epochs": 1}]}, 18),
    ],
)
def test_what_changes_numbers_shares_no_stage(tmp_path: Path, changes: Table, same: int) -> None:
    keys = [{s.key for s in Plan(parse(tiny(**c), tmp_path)).stages} for c in ({}, changes)]
    assert len(keys[0] & keys[1]) == same


def test_what_a_task_measures_depends_on_how_models_are_trained(tmp_path: Path) -> None:
    def measure(epochs: int) -> str:
        table = tiny(train={"epochs": epochs}, forget={"name": "hard_examples", "count": 10, "nets": 2})
        first = Plan(parse(table, tmp_path)).stages[0]
        assert first.kind == "measure"
        return first.key

    assert measure(2) != measure(3)


def test_two_classes_of_one_name_share_no_stage(tmp_path: Path) -> None:
    add_search_path(tmp_path)
    text = (
        "from dataclasses import dataclass\nfrom expunge.methods.finetune import Finetune\n"
        "@dataclass(frozen=True)\nclass Mine(Finetune):\n    pass\n"
    )
    (tmp_path / "first_mine.py").write_text(text)
    (tmp_path / "second_mine.py").write_text(text + "# another\n")

    def keys(module: str) -> set[str]:
        table = tiny(method=[{"name": f"{module}:Mine", "label": "mine"}])
        return {s.key for s in Plan(parse(table, tmp_path)).stages if s.model == "mine"}

    assert keys("first_mine").isdisjoint(keys("second_mine"))


def test_the_content_of_a_file_counts_and_its_name_does_not(tmp_path: Path) -> None:
    def keys(name: str, ids: str) -> list[str]:
        (tmp_path / name).write_text(ids)
        return [s.key for s in Plan(parse(tiny(forget={"name": "indices", "path": name}), tmp_path)).stages]

    assert keys("a.txt", "1 2 3") == keys("b.txt", "1 2 3")
    assert set(keys("a.txt", "1 2 3")).isdisjoint(keys("a.txt", "1 2 4"))


def test_a_record_that_was_edited_is_written_anew(out: Path) -> None:
    before = contents(out)
    (out / "tiny" / "results.jsonl").write_text("{}\n")
    (out / "tiny" / "verdicts.json").unlink()
    assert new_stages(tiny(), out) == []
    assert contents(out) == before


def test_two_runs_share_the_stages_that_they_have_in_common(out: Path) -> None:
    found = new_stages(tiny(name="more", method=[{"name": "random_relabel", "epochs": 2}, {"name": "finetune"}]), out)
    assert found and all("finetune" in name for name in found)
    assert (out / "more" / "manifest.json").is_file() and (out / "tiny" / "manifest.json").is_file()
