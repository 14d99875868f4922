"""What a spec file means; how it is refused is tested through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.base.errors import SpecError
from expunge.base.spec import Spec, parse, read
from expunge.base.spec_tables import Entry, Gate
from helpers import Table, tiny, toml, write_spec


def test_a_table_becomes_entries_with_labels_settings_and_extras(tmp_path: Path) -> None:
    spec = parse(
        tiny(
            method=[{"name": "npo", "beta": 0.5}, {"name": "npo", "label": "cheap", "budget": 100}],
            audit=[{"name": "loss", "required": True}],
            gate=[{"method": "cheap", "verdict": "dormant"}],
        ),
        tmp_path,
    )
    assert spec.method == (Entry("npo", "npo", {"beta": 0.5}), Entry("npo", "cheap", {}, budget=100))
    assert spec.audit == (Entry("loss", "loss", {}, required=True),)
    assert spec.gate == (Gate("cheap", "dormant"),)
    assert spec.data == Entry("digits", "digits", {"train": 120, "test": 60})


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    table = {"name": "a", "data": {"name": "digits"}, "model": {"name": "mlp"}, "forget": {"name": "label_swap"}}
    spec = parse(table, tmp_path)
    assert spec.seeds == (0, 1, 2) and spec.threads == 1 and spec.weights is None and spec.train == {}
    assert spec.method == spec.attack == spec.audit == spec.gate == ()


def test_parsing_changes_nothing_in_the_table(tmp_path: Path) -> None:
    table, same = tiny(model={"name": "mlp", "weights": "a"}), tiny(model={"name": "mlp", "weights": "a"})
    parse(table, tmp_path)
    assert table == same


def test_weights_count_from_the_spec_file(tmp_path: Path) -> None:
    spec = read(write_spec(tmp_path / "specs", tiny(model={"name": "mlp", "weights": "../a.safetensors"})))
    assert spec.weights == str(tmp_path / "specs" / "../a.safetensors") and spec.model.settings == {}
    absolute = read(write_spec(tmp_path, tiny(model={"name": "mlp", "weights": "/b.safetensors"})))
    assert absolute.weights == "/b.safetensors"


def test_a_function_gets_a_label_that_can_be_a_file_name(tmp_path: Path) -> None:
    [entry] = parse(tiny(method=[{"name": "my.module:function"}]), tmp_path).method
    assert (entry.name, entry.label) == ("my.module:function", "my.module.function")


def test_the_same_label_may_stand_for_a_method_and_an_attack(tmp_path: Path) -> None:
    spec = parse(tiny(attack=[{"name": "relearn", "label": "random_relabel"}]), tmp_path)
    assert spec.attack[0].label == spec.method[0].label


def test_a_method_after_another_is_laid_out_behind_it(tmp_path: Path) -> None:
    methods = [{"name": "npo", "label": "c", "after": "b"}, {"name": "npo", "label": "b", "after": "m:f"}]
    spec = parse(tiny(method=[*methods, {"name": "m:f"}, {"name": "npo", "label": "d"}]), tmp_path)
    assert [entry.after for entry in spec.method] == ["b", "m.f", None, None]
    assert all("after" not in entry.settings for entry in spec.method)
    assert [entry.label for entry in spec.chain("c")] == ["m.f", "b", "c"]
    assert [entry.label for entry in spec.chained] == ["m.f", "d", "b", "c"]


def test_a_circle_is_reported_at_a_method_in_it(tmp_path: Path) -> None:
    methods = [{"name": "npo", "label": x, "after": y} for x, y in ("ab", "bc", "cb")]
    with pytest.raises(SpecError, match="b after c after b") as error:
        parse(tiny(method=methods), tmp_path)
    assert error.value.where == "method[1].after"


@pytest.mark.parametrize("name", ["a", "Fashion-hard", "run_2.1", "7"])
def test_names_that_are_accepted(tmp_path: Path, name: str) -> None:
    assert parse(tiny(name=name), tmp_path).name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a b", "ä", "a\n", "original/..", "a:b"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(tiny(name=name), tmp_path)
    assert error.value.where == "name" and repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"name": 3}, "name"),
        ({"seeds": 3}, "seeds"),
        ({"seeds": [0.5]}, "seeds[0]"),
        ({"threads": "2"}, "threads"),
        ({"threads": 0}, "threads"),
        ({"train": [1]}, "train"),
        ({"model": {"name": "mlp", "weights": 3}}, "model.weights"),
        ({"data": {"name": 3}}, "data.name"),
        ({"attack": ["relearn"]}, "attack[0]"),
        ({"gate": {"method": "a", "verdict": "erased"}}, "gate"),
        ({"gate": ["erased"]}, "gate[0]"),
        ({"method": [{"name": "retrain", "label": 3}]}, "method[0].label"),
        ({"method": [{"name": "retrain", "label": "original"}]}, "method[0].label"),
        ({"method": [{"name": "retrain", "budget": True}]}, "method[0].budget"),
    ],
)
def test_an_error_says_where(tmp_path: Path, changes: Table, where: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(tiny(**changes), tmp_path)
    assert error.value.where == where and error.value.exit_code == 2
    assert error.value.allowed or error.value.remedy


def overridden(folder: Path, *assignments: str, **changes: Any) -> Spec:
    return read(write_spec(folder, tiny(**changes)), assignments)


def test_an_override_makes_the_table_that_it_needs(tmp_path: Path) -> None:
    table = tiny()
    del table["train"]
    (tmp_path / "spec.toml").write_text(toml(table))
    assert read(tmp_path / "spec.toml", ["train.epochs=3"]).train == {"epochs": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("true", True),
        ("adam", "adam"),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("a=b", "a=b"),
        ("", ""),
        ("1e-3", 1e-3),
        (" 7", 7),
    ],
)
def test_an_override_is_toml_and_otherwise_text(tmp_path: Path, text: str, value: Any) -> None:
    assert overridden(tmp_path, f"train.epochs={text}").train["epochs"] == value


def test_a_label_is_looked_for_before_a_name_and_a_name_before_a_position(tmp_path: Path) -> None:
    entries = [{"name": "relearn", "label": "long"}, {"name": "relearn"}, {"name": "relearn", "label": "0"}]

    def where(step: str) -> list[int]:
        spec = overridden(tmp_path, f"attack.{step}.k=9", attack=entries)
        return [i for i, entry in enumerate(spec.attack) if entry.settings.get("k") == 9]

    assert where("long") == [0] and where("relearn") == [1] and where("0") == [2] and where("1") == [1]


def test_a_name_with_labels_only_means_the_first(tmp_path: Path) -> None:
    entries = [{"name": "relearn", "label": "a"}, {"name": "relearn", "label": "b"}]
    spec = overridden(tmp_path, "attack.relearn.k=9", attack=entries)
    assert [entry.settings for entry in spec.attack] == [{"k": 9}, {}]


def test_overrides_are_applied_in_order(tmp_path: Path) -> None:
    spec = overridden(tmp_path, "method.random_relabel.label=x", "method.x.epochs=1", "method.x.epochs=5")
    assert spec.method[0].label == "x" and spec.method[0].settings["epochs"] == 5
