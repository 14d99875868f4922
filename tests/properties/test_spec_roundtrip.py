"""For any small spec: what it resolves to means the same again; seeds, addresses and text of rows follow their rules."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.base.record import address, rows_to_text
from expunge.base.seeds import derive
from expunge.base.spec import parse
from expunge.base.spec_tables import VERDICTS
from expunge.pipeline.plan import Plan
from helpers import Table, toml

labels = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
counts = st.integers(1, 50)
rates = st.floats(1e-8, 1e3, allow_nan=False)
shares = st.floats(0, 1, allow_nan=False)


def table(name: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Table]:
    """A part's table with any of its settings left out."""
    return st.fixed_dictionaries({"name": st.just(name)}, optional=fields)


METHODS = st.one_of(
    table("retrain", budget=counts),
    table("finetune", epochs=counts, learning_rate=rates, optimizer=st.sampled_from(["adam", "adamw", "sgd"])),
    table("random_relabel", weight=rates, forget_batch_size=counts, budget=counts),
    table("weight_distortion", sigma=rates),
    table("json:dumps", indent=counts),
)
ATTACKS = table("relearn", k=st.integers(0, 5), epochs=counts, points=counts)
DIAGNOSTICS = table("memorization", nets=counts)
AUDITS = st.one_of(table("loss", required=st.booleans()), table("path"), table("distance"))


@st.composite
def specs(draw: st.DrawFn) -> Table:
    names = iter(draw(st.lists(labels, min_size=11, max_size=11, unique=True)))
    found: Table = {
        "name": draw(
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(lambda name: name != "cache")
        ),
        "data": draw(table("digits", train=st.just(60), test=st.just(30))),
        "model": draw(
            st.one_of(table("mlp", widths=st.lists(counts, max_size=2), dropout=shares), table("json:loads"))
        ),
        "forget": draw(
            st.one_of(
                table("label_swap", count=counts, discovery=shares),
                table("whole_class", label=st.one_of(st.integers(0, 9), st.sampled_from("0123456789"))),
                table("indices", path=st.just("ids.txt")).filter(lambda found: "path" in found),
                table("hard_examples", count=counts, nets=counts),
            )
        ),
        "method": [m | {"label": "m-" + next(names)} for m in draw(st.lists(METHODS, max_size=3))],
        "attack": [a | {"label": "t-" + next(names)} for a in draw(st.lists(ATTACKS, max_size=2))],
        "diagnostic": [p | {"label": "p-" + next(names)} for p in draw(st.lists(DIAGNOSTICS, max_size=2))],
        "audit": [a | {"label": "u-" + next(names)} for a in draw(st.lists(AUDITS, max_size=2))],
    }
    found |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "seeds": st.lists(st.integers(0, 10**6), min_size=1, max_size=3, unique=True),
                "threads": st.integers(1, 4),
                "train": st.fixed_dictionaries(
                    {}, optional={"epochs": counts, "learning_rate": rates, "final": shares, "clip": rates}
                ),
            },
        )
    )
    for i, method in enumerate(found["method"]):
        before = draw(st.sampled_from([None, *(m["label"] for m in found["method"][:i])]))
        found["method"][i] = method | ({"after": before} if before else {})
    verdicts = st.sampled_from(VERDICTS)
    if found["method"]:
        found["gate"] = [{"method": m["label"], "verdict": draw(verdicts)} for m in found["method"][:1]]
    return found


@settings(max_examples=40, deadline=None)
@given(specs())
def test_what_a_spec_resolves_to_resolves_to_itself(spec: Table) -> None:
    folder = Path("/specs")
    plan = Plan(parse(spec, folder))
    resolved = plan.resolved()
    # Every value that was given is there, and the rest are defaults.
    assert resolved["data"].items() >= spec["data"].items()
    for entry, stated in zip(resolved["method"], spec["method"], strict=True):
        assert entry.items() >= stated.items()
    # The folder no longer matters: paths in it are whole.
    again = Plan(parse(resolved, Path("/elsewhere")))
    assert again.resolved() == resolved
    assert [stage.key for stage in again.stages] == [stage.key for stage in plan.stages]
    # The record holds it as JSON.
    assert Plan(parse(json.loads(json.dumps(resolved)), Path())).resolved() == resolved


@settings(max_examples=40, deadline=None)
@given(specs())
def test_a_spec_reads_the_same_from_its_file(spec: Table) -> None:
    assert parse(tomllib.loads(toml(spec)), Path()) == parse(spec, Path())


# A slash separates names, and no label, attack or method has one.
words = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=8)
paths = st.tuples(st.integers(0, 2**40), st.lists(words, min_size=1, max_size=3).map(tuple))


@settings(deadline=None)
@given(st.lists(paths, min_size=2, max_size=20, unique=True))
def test_seeds_are_stable_distinct_and_fit_a_generator(found: list[tuple[int, tuple[str, ...]]]) -> None:
    seeds = [derive(seed, *names) for seed, names in found]
    assert seeds == [derive(seed, *names) for seed, names in found]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_on_every_machine() -> None:
    # Frozen: other values would be other numbers in every record that there is.
    assert derive(0, "train") == 2225127660497744019
    assert derive(1, "unlearn", "npo") == 5099864170925226519


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def turned(value: Any) -> Any:
    """The value with the keys of every table in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(item) for key, item in reversed(value.items())}
    return [turned(item) for item in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(plain)
def test_an_address_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    assert address(value) == address(turned(value))


@settings(deadline=None)
@given(plain, plain)
def test_an_address_tells_values_apart(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (address(one) == address(other)) is same


numbers = st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=4))


def respelled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {True: "NaN", False: "Infinity" if value > 0 else "-Infinity"}[math.isnan(value)]
    return value


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), numbers, max_size=4), max_size=4))
def test_rows_are_one_line_each_of_json_without_extensions(rows: list[dict[str, Any]]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = rows_to_text(rows).split("\n")
    assert lines.pop() == "" and len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert json.loads(line, parse_constant=refuse) == {key: respelled(value) for key, value in row.items()}
