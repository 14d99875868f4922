"""Tables fit the terminal and hold the right numbers; a part's description is what its file says."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest

from expunge.base import registry
from expunge.base.manifest import read_manifest
from expunge.base.part import Count, Part
from expunge.reporting.describe import describe, spelled_type
from expunge.reporting.listing import diagnosed, estimates
from expunge.reporting.text import WIDTH, costs_table, knowledge_key, shown, verdict_table
from expunge.reporting.verify import judged


def table_of(folder: Path) -> str:
    table, _ = judged(folder, read_manifest(folder))
    return verdict_table(table, table.verdicts())


def test_each_model_has_a_line_and_each_method_its_verdict(run_folder: Path) -> None:
    text = table_of(run_folder)
    lines = text.splitlines()
    assert lines[0].split() == ["model", "forget", "after", "relearn", "retain", "test", "L2", "verdict"]
    rows = {line.split()[0]: line.split() for line in lines[2:6]}
    # Three seeds agree on every one of 200 examples: the interval is that of 200 agreements, see `contrast.py`.
    agreeing = f"±{100 * 1.6525 * math.sqrt(2) / 202:.1f}"
    assert rows["original"][1:3] == ["100.0", agreeing]
    assert (rows["hidden"][1], rows["hidden"][3]) == ("20.0", "90.0")
    # Student's half-width of 2.0, 2.1, 2.2 is t(0.95, 2) * 0.1 / sqrt(3) = 0.1686.
    assert rows["hidden"][-3:] == ["2.1", "±0.17", "dormant"]
    assert "hidden: dormant, incomplete" in text
    assert "clean: erased" in text


@pytest.mark.parametrize("attacks", [[], ["relearn"], ["relearn", "relearn_with_ten", "quantise", "prune"]])
def test_it_fits_the_terminal(make_run: Callable[..., Path], attacks: list[str]) -> None:
    lines = table_of(make_run(attacks=attacks)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert ("Not shown: L2" in " ".join(lines)) == (len(attacks) > 2)


def test_costs_are_shares_of_a_retraining() -> None:
    costs = {
        "reference": {"stages": 3, "seconds": 30.0, "gradients": 300_000},
        "unlearn npo": {"stages": 3, "seconds": 2.0, "gradients": 12_000},
        "audit": {"stages": 40, "seconds": 1.0, "gradients": 0},
    }
    lines = costs_table(costs).splitlines()
    assert lines[2].split() == ["unlearn", "npo", "3", "2.0", "12,000", "4.0", "%"]
    assert lines[3].split() == ["audit", "40", "1.0", "-"]


def test_costs_without_a_retraining_have_no_share() -> None:
    lines = costs_table({"unlearn npo": {"stages": 1, "seconds": 2.0, "gradients": 5}}).splitlines()
    assert lines[1].split() == ["unlearn", "npo", "1", "2.0", "5"]


@pytest.mark.parametrize(
    ("metrics", "first"),
    [(["accuracy", "recitation"], "accuracy"), (["accuracy", "recitation", "value_recall"], "value_recall")],
)
def test_the_table_shows_facts_where_the_data_name_them(metrics: list[str], first: str) -> None:
    """Retrained models know 81 % of the words of `examples/smollm2.toml`, and 3 % of its facts."""
    measured = [SimpleNamespace(scores=SimpleNamespace(key=(m, "forget"), required=True)) for m in metrics]
    table: Any = SimpleNamespace(measured=measured)
    assert knowledge_key(table) == (first, "forget")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.1234, "share", "12.3"), (12.3456, "nats", "12.3"), (float("nan"), "share", "not finite"), (1e-12, "nats", "0")],
)
def test_numbers(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


@dataclass(frozen=True)
class Base(Part):
    """A base."""

    first: Count = 3
    """How many."""
    second: float = 0.5
    """Of the base."""


@dataclass(frozen=True)
class Derived(Base):
    """What it does.

    And how.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"recipe", "classes"})
    second: float = 0.7
    """Of the derived one."""
    third: Literal["a", "b"] = "a"
    fourth: list[int] = field(default_factory=lambda: [1])
    """A list,
    on two lines."""


def test_a_part_is_described_from_its_source() -> None:
    found = describe("method", Derived)
    assert found["summary"] == "What it does.\n\nAnd how."
    assert found["needs"] == ["classes", "recipe"]
    assert found["version"] == 1
    assert found["settings"] == [
        {"name": "first", "type": "int >= 1", "default": 3, "doc": "How many."},
        {"name": "second", "type": "float", "default": 0.7, "doc": "Of the derived one."},
        {"name": "third", "type": '"a" | "b"', "default": "a", "doc": ""},
        {"name": "fourth", "type": "list[int]", "default": [1], "doc": "A list,\non two lines."},
    ]


def test_a_function_is_described_by_its_keywords() -> None:
    def measure(model: object, *, scale: float = 2.0) -> None:
        """Measure."""

    found = describe("audit", measure)
    assert found["summary"] == "Measure."
    assert found["settings"] == [{"name": "scale", "type": "", "default": 2.0, "doc": ""}]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in registry.FOLDERS for name in registry.names(kind)])
def test_every_part_and_each_of_its_settings_says_what_it_is(kind: str, name: str) -> None:
    found = describe(kind, registry.load(kind, name))
    assert found["summary"].startswith(registry.summary(kind, name))
    assert [setting["name"] for setting in found["settings"] if not setting["doc"]] == []


def test_types_are_spelled_for_people() -> None:
    assert spelled_type(Annotated[float, msgspec.Meta(ge=0, le=1)]) == "float >= 0 and <= 1"
    assert spelled_type(int | None) == "int | none"
    assert spelled_type(tuple[int, ...]) == "tuple[int, ...]"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ((3.0, "nan", "nan", "steps"), "3 steps, n = 9"),
        ((3.0, 2.0, "Infinity", "steps"), "3 steps (2 or more), n = 9"),
        (("Infinity", "nan", "nan", "examples"), "beyond what this sample can tell, n = 9"),
        ((29.6, -20.7, 80.0, "per weight"), "29.6 per weight (uncertain: up to 80, and 0 is not excluded), n = 9"),
        ((0.9, 0.7, 1.1, "share"), "90.0 % (70.0 to 100.0), n = 9"),
        ((-0.02, -0.1, 0.06, "share"), "-2.0 % (-10.0 to 6.0), n = 9"),
    ],
)
def test_an_estimate_is_shown_without_impossible_numbers(row: tuple[Any, ...], text: str) -> None:
    value, low, high, unit = row
    assert estimates({"it": {"value": value, "low": low, "high": high, "unit": unit, "n": 9}}) == f"  it  {text}"


def test_what_a_diagnostic_recommends_comes_first_and_reads_back_as_a_spec() -> None:
    row = {"value": 3.0, "low": math.nan, "high": math.nan, "unit": "steps", "n": 9}
    plan = {"name": "neggrad_plus", "optimizer": "sgd", "learning_rate": 0.002, "alpha": 0.9, "epochs": 3}
    text = diagnosed("recommendation", {"steps": row}, "Take it. " * 30, [{"name": "npo"}, plan])
    begin, end = text.index("[[method]]"), text.index("  steps  3 steps")
    assert tomllib.loads(text[begin:end]) == {"method": [{"name": "npo"}, plan]}
    assert max(map(len, text.splitlines())) <= 100
    assert "[[method]]" not in diagnosed("sharpness", {"steps": row}, "", [])
