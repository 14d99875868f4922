"""The examples on models of one's own run as they stand, and find what they say they find."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.chdir(folder)
    example(name).main()
    return capsys.readouterr().out


def test_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("own_model", tmp_path, monkeypatch, capsys)
    assert "incomplete" in printed
    assert (tmp_path / "own_model.html").is_file()


def test_lost_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    caught, not_cleared = run("lost_recipe", tmp_path, monkeypatch, capsys).strip().split("\n\n")
    assert "exceeds the margin" in caught
    assert "no model can be called erased" in not_cleared


def test_hf_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    assert "npo" in run("hf_image", tmp_path, monkeypatch, capsys)
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / "unlearned_vit")
    assert loaded.config.num_labels == 10


def test_hf_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert "accuracy on forget" in run("hf_text", tmp_path, monkeypatch, capsys)


def test_learned_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With two seeds and few neurons; the page about it has the numbers of the whole script."""
    module = example("learned_mask")
    for name, value in (("SEEDS", (0, 1)), ("HIDDEN", 32)):
        monkeypatch.setattr(module, name, value)
    module.main()
    printed = capsys.readouterr().out
    rows = {line.split()[0]: list(map(float, line.split()[1:])) for line in printed.splitlines()[1:-1]}
    assert rows["original"][0] > 0.5 > 0.2 > rows["retrained"][0] and rows["learned_mask"][0] < 0.2
    assert {"balanced_subnet", "ssd", "salun"} < set(rows) and "overlap" in printed.splitlines()[-1]


SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if not path.with_suffix(".toml").exists())
"""Not those that make what a spec of the same name reads."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
