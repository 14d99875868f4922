"""A record is checked as it stands, and any change to it is found and named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _written import accept_digest

from expunge.base.errors import RunError, SpecError
from expunge.evidence import scores
from expunge.reporting.verify import verify


def test_an_untouched_run_agrees(run_folder: Path) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    rows = (run_folder / "results.jsonl").read_text().count("\n")
    found = verify(run_folder)
    assert found == {"digests": sum(len(s["files"]) for s in manifest["stages"]) + 4, "rows": rows, "verdicts": 2}


@pytest.mark.parametrize(
    "name",
    ["scores/hidden-s1-accuracy.safetensors", "models/clean-s0.safetensors", "results.jsonl", "spec.json", "env.json"],
)
def test_a_changed_byte_is_named(run_folder: Path, name: str) -> None:
    path = run_folder / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=name) as caught:
        verify(run_folder)
    assert caught.value.exit_code == 4


def test_a_missing_file_is_named(run_folder: Path) -> None:
    (run_folder / "models" / "clean-s2.safetensors").unlink()
    with pytest.raises(RunError, match=r"clean-s2\.safetensors: the file is missing"):
        verify(run_folder)


def test_changed_scores_with_a_changed_digest_disagree_with_the_rows(run_folder: Path) -> None:
    name = "scores/hidden-s1-relearn-accuracy.safetensors"
    held = scores.load(run_folder, name)
    values = np.zeros_like(held[0].values)
    facts = (values, held[0].ids, "knowledge", "share", "reference")
    changed = scores.Scores("accuracy", "forget", *facts, required=True)
    (run_folder / name).write_bytes(scores.dumps([changed, *held[1:]]))
    accept_digest(run_folder, name)
    line = next(
        number
        for number, row in enumerate(map(json.loads, (run_folder / "results.jsonl").read_text().splitlines()), start=1)
        if (row["model"], row["seed"], row["attack"]) == ("hidden", 1, "relearn")
    )
    with pytest.raises(RunError, match=rf"results\.jsonl:{line}: "):
        verify(run_folder)


def test_a_flattered_verdict_is_named(run_folder: Path) -> None:
    path = run_folder / "verdicts.json"
    path.write_text(path.read_text().replace('"verdict": "dormant"', '"verdict": "erased"'))
    accept_digest(run_folder, "verdicts.json")
    with pytest.raises(RunError, match=r"\[1\]\.verdict: the verdict about 'hidden' has 'erased'; allowed: 'dormant'"):
        verify(run_folder)


@pytest.mark.parametrize("state", ["void", "idle", "unclear"])
def test_another_state_of_an_attack_is_named(run_folder: Path, state: str) -> None:
    path = run_folder / "verdicts.json"
    path.write_text(path.read_text().replace('"state": "valid"', f'"state": "{state}"'))
    accept_digest(run_folder, "verdicts.json")
    with pytest.raises(RunError, match=rf"\.attacks\[0\]\.state: the verdict about \S+ has '{state}'"):
        verify(run_folder)


@pytest.mark.parametrize("rules", [1, 2])
def test_verdicts_of_older_rules_are_not_compared(run_folder: Path, rules: int) -> None:
    """Rules 2 did not say what became of each attack, and rules 1 had other intervals; their values must agree."""
    manifest, path = run_folder / "manifest.json", run_folder / "verdicts.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "rules": rules}))
    verdicts = [{key: v[key] for key in v if key != "attacks"} for v in json.loads(path.read_text())]
    path.write_text(json.dumps(verdicts))
    accept_digest(run_folder, "verdicts.json")
    assert "verdicts" not in verify(run_folder)
    rows = run_folder / "results.jsonl"
    rows.write_text(rows.read_text().replace('"value": 0.9', '"value": 0.8'))
    accept_digest(run_folder, "results.jsonl")
    with pytest.raises(RunError, match="results"):
        verify(run_folder)


def test_dropped_rows_and_verdicts_are_found(run_folder: Path) -> None:
    path = run_folder / "results.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    accept_digest(run_folder, "results.jsonl")
    with pytest.raises(RunError, match="rows"):
        verify(run_folder)
    path.write_text(whole)
    (run_folder / "verdicts.json").write_text("[]\n")
    for name in ("results.jsonl", "verdicts.json"):
        accept_digest(run_folder, name)
    with pytest.raises(RunError, match="found 0 verdicts"):
        verify(run_folder)


def test_a_folder_without_a_run_is_a_mistake_of_the_user(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(SpecError, match="holds no run"):
        verify(tmp_path)
    with pytest.raises(SpecError, match="holds no run"):
        verify(tmp_path / "nowhere")
    (run_folder / "manifest.json").unlink()
    with pytest.raises(SpecError, match=r"not finished.*run `expunge run SPEC` again"):
        verify(run_folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"stages": [], "format": 99}', '{"stages": [{}], "format": 1}'])
def test_a_damaged_manifest_is_named(run_folder: Path, text: str) -> None:
    (run_folder / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json"):
        verify(run_folder)


def test_other_versions_are_mentioned(run_folder: Path) -> None:
    path = run_folder / "env.json"
    path.write_text(path.read_text().replace('"expunge": "0.1.0"', '"expunge": "0.0.1"'))
    accept_digest(run_folder, "env.json")
    verdicts = run_folder / "verdicts.json"
    verdicts.write_text(verdicts.read_text().replace("0.9", "0.8"))
    accept_digest(run_folder, "verdicts.json")
    with pytest.raises(RunError, match=r"versions differ: expunge 0\.0\.1 recorded"):
        verify(run_folder)


def test_no_torch_is_needed(run_folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it now fails
        "from pathlib import Path\n"
        "from expunge.reporting import doctor, page, verify\n"
        f"verify.verify(Path({str(run_folder)!r})); page.write_report(Path({str(run_folder)!r})); doctor.examine()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
