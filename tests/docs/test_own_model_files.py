"""The spec for files in docs/own-model.md, with the commands below it, runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import cli, finished

PAGE = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")


def _block(language: str, section: str) -> str:
    found = re.search(rf"^``` ?{re.escape(language)}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_commands_on_files_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = PAGE.partition("## On files")[2]
    before = PAGE.partition("## Four lines")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", before, re.MULTILINE | re.DOTALL)
    exec("\n".join([*blocks, _block("python", files)]), {})
    (tmp_path / "my_models.py").write_text(_block("{ .python }", files))
    (tmp_path / "mine.toml").write_text(_block("toml", files))
    commands = [line.partition("#")[0].split() for line in _block("bash", files).splitlines()]
    assert [words[1] for words in commands] == ["diagnose", "unlearn", "unlearn", "audit", "run"]
    told = [finished(cli(*words[1:])).out for words in commands[:4]]
    assert "hardness" in told[0] and "unlearned.safetensors" in told[1] and "verdict" in told[3]
    assert {path.name for path in (tmp_path / "unlearned").iterdir()} >= {"weights.safetensors", "README.md"}
