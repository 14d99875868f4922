"""Names are found by looking, built with checked settings, and told from one another by content."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from expunge.base import registry, user_code
from expunge.base.errors import SpecError
from expunge.base.part import Count, Part, Positive
from expunge.methods.finetune import Finetune

KINDS = ("data", "model", "block", "task", "method", "attack", "audit")
MODULE = """
from dataclasses import dataclass
from expunge.methods.finetune import Finetune

CONSTANT = 3

def scale(x, y=1, *, factor=2, offset=0):
    return factor * x + offset

def anything(x, **settings):
    return settings

@dataclass(frozen=True)
class Mine(Finetune):
    depth: int = 1

class Shelf:
    inner = staticmethod(scale)
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of the user's, as the one beside a spec file."""
    (tmp_path / "own_module.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    user_code.add_search_path(tmp_path)
    yield tmp_path
    sys.modules.pop("own_module", None)


def build(name: str, **settings: Any) -> Any:
    return registry.build("method", name, settings, where="method[0]")


@pytest.mark.parametrize("kind", KINDS)
def test_each_file_is_a_name_with_a_class_and_a_summary(kind: str) -> None:
    names = registry.names(kind)
    assert names == sorted(set(names)) and names
    for name in names:
        part = registry.load(kind, name)
        assert issubclass(part, Part) and part.__name__.lower() == name.replace("_", "")
        summary = registry.summary(kind, name)
        assert len(summary) > 20 and "\n" not in summary
        assert kind in registry.kinds_of(name)


def test_a_study_is_a_folder_with_its_name() -> None:
    names = registry.names("study")
    assert {"dormant", "rem"} <= set(names)
    for name in names:
        study = registry.load("study", name)
        assert study.__module__ == f"expunge.studies.{name}.study"
        assert study.__name__.lower() == name.replace("_", "") + "study"
    # One name, two kinds: the method and the study of the same paper.
    assert registry.kinds_of("rem") == ["method", "study"]


def test_names_and_summaries_of_studies_import_none() -> None:
    code = (
        "import sys; from expunge.base import registry;"
        "[registry.facts('study', name) for name in registry.names('study')];"
        "sys.exit(any(m == 'torch' or m.startswith('expunge.stud') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_helpers_are_no_names() -> None:
    assert not [name for kind in registry.FOLDERS for name in registry.names(kind) if name.startswith("_")]


def test_kinds_without_files_are_empty_and_others_refused() -> None:
    assert registry.kinds_of("no-such-part") == []
    with pytest.raises(SpecError, match=r"unknown kind 'metod'.*did you mean 'method'"):
        registry.names("metod")


def test_a_part_is_built_with_its_settings_and_defaults() -> None:
    part = build("finetune", epochs=3)
    assert part == Finetune(epochs=3) and part.settings()["batch_size"] == 128


def test_whole_numbers_are_taken_for_real_ones_and_make_the_same_part() -> None:
    assert build("finetune", learning_rate=1).fingerprint() == build("finetune", learning_rate=1.0).fingerprint()


@pytest.mark.parametrize("value", ["0.1", None, True, float("nan"), float("inf"), 0, -1.0])
def test_a_rate_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(SpecError) as error:
        build("finetune", learning_rate=value)
    assert error.value.where == "method[0].learning_rate" and repr(value) in error.value.finding


def test_a_function_is_called_with_its_settings(beside: Path) -> None:
    part = build("own_module:scale", factor=5)
    assert isinstance(part, registry.FunctionPart)
    assert part(3) == 15 and part.settings() == {"factor": 5}


def test_an_attribute_of_an_attribute_is_found(beside: Path) -> None:
    assert build("own_module:Shelf.inner")(3) == 6


def test_a_function_that_takes_any_setting_gets_all(beside: Path) -> None:
    assert build("own_module:anything", a=1, b=2)(0) == {"a": 1, "b": 2}


def test_a_function_needs_nothing_and_fits_everything(beside: Path) -> None:
    part = build("own_module:scale")
    assert not part.measures and part.after_attack and not part.needs and not part.trains and not part.control


@pytest.mark.parametrize("fact", ["trains", "control"])
@pytest.mark.parametrize(("value", "counts"), [(True, True), (False, False), ("yes", False), (1, False)])
def test_a_function_of_an_attack_says_what_it_does(beside: Path, fact: str, value: object, counts: bool) -> None:
    part = build("own_module:scale")
    setattr(part.function, fact, value)
    assert getattr(part, fact) is counts


def test_a_class_is_a_part_like_those_that_are_there(beside: Path) -> None:
    part = build("own_module:Mine", depth=4, epochs=2)
    assert isinstance(part, Finetune) and part.settings()["depth"] == 4
    with pytest.raises(SpecError, match=r"method\[0\]: unknown key 'depht'.*did you mean 'depth'"):
        build("own_module:Mine", depht=4)


@pytest.mark.parametrize(
    "name",
    ["own_module:nothing", "own_module:Shelf.nothing", "own_modul:scale", ":scale", "own_module:", ".own_module:scale"],
)
def test_what_is_not_there_says_what_would_be(beside: Path, name: str) -> None:
    with pytest.raises(SpecError) as error:
        build(name)
    assert error.value.where == "method[0].name" and name in error.value.finding
    assert "module:function" in error.value.allowed


@pytest.mark.parametrize("name", ["own_module:CONSTANT", "own_module:__doc__"])
def test_what_cannot_be_called_is_refused(beside: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"method\[0\]\.name: .* is not callable"):
        build(name)


def test_code_of_the_users_counts_as_its_version(beside: Path) -> None:
    names = ("own_module:scale", "own_module:Mine")
    before = [build(name).fingerprint() for name in names]
    assert before == [build(name).fingerprint() for name in names]
    (beside / "own_module.py").write_text(MODULE + "# changed\n")
    importlib.reload(sys.modules["own_module"])
    for name, old in zip(names, before, strict=True):
        assert build(name).fingerprint() != old


def test_fingerprints_differ_between_functions_settings_and_versions(beside: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Newer(Finetune):
        version = 2

    @dataclasses.dataclass(frozen=True)
    class Older(Finetune):
        pass

    found = [
        build("own_module:scale"),
        build("own_module:scale", factor=3),
        build("own_module:anything"),
        build("own_module:anything", factor=3),
        build("own_module:Mine"),
        build("finetune"),
        Newer(),
        Older(),
    ]
    texts = [repr(part.fingerprint()) for part in found]
    assert len(set(texts)) == len(texts)


def test_an_entry_point_of_another_package_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("plugged", "expunge.methods.finetune:Finetune", "expunge.methods")
    shadow = EntryPoint("retrain", "expunge.methods.finetune:Finetune", "expunge.methods")
    found = {"plugged": point, "retrain": shadow}
    monkeypatch.setattr(registry, "_entry_points", lambda kind: found if kind == "method" else {})
    assert "plugged" in registry.names("method") and registry.kinds_of("plugged") == ["method"]
    assert build("plugged", epochs=2) == Finetune(epochs=2)
    assert "expunge.methods.finetune:Finetune" in registry.summary("method", "plugged")
    # A built-in file wins over an entry point of the same name.
    assert registry.load("method", "retrain").__name__ == "Retrain"


def test_a_relative_path_counts_from_the_folder_that_is_given(tmp_path: Path) -> None:
    table = {"path": "ids.txt"}
    part = registry.build("task", "indices", table, where="forget", folder=tmp_path)
    assert part.settings()["path"] == str(tmp_path / "ids.txt") and table == {"path": "ids.txt"}


def test_a_part_can_be_made_in_code_and_checks_itself() -> None:
    @dataclasses.dataclass(frozen=True)
    class Knobs(Part):
        count: Count = 1
        rate: Positive = 0.5
        names: list[str] = dataclasses.field(default_factory=list)

    assert Knobs(count=3).settings() == {"count": 3, "rate": 0.5, "names": []}
    for settings, where in (({"count": 0}, "count"), ({"rate": 0}, "rate"), ({"names": [1]}, "names")):
        with pytest.raises(SpecError) as error:
            Knobs(**settings)
        assert error.value.where == where
    with pytest.raises(dataclasses.FrozenInstanceError):
        Knobs().count = 4  # type: ignore[misc]
