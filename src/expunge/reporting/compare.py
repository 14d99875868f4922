"""Compares two runs on the same data and forget set: their settings, verdicts and estimates, and the differences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from expunge.base.errors import ExpungeError, SpecError
from expunge.base.manifest import read_manifest
from expunge.base.reading import read_inside
from expunge.evidence.intervals import student
from expunge.evidence.scores import Scores
from expunge.evidence.table import ORIGINAL, Key
from expunge.reporting._toml import spelled_value
from expunge.reporting.record import Json, Run
from expunge.reporting.text import columns_of, shown

SAME = ("data", "forget")
"""Tables of the spec that must not differ."""
VERSIONED = ("data", "forget", "audit")
"""Tables of the spec whose parts must have the same version, because they decide what is measured and how."""
FACTS = ("role", "unit", "better", "sign", "reduce")
"""Fields of a metric's scores that must agree for its values to be comparable."""
NOT_SETTINGS = ("name", "gate", "gallery")


@dataclass(frozen=True)
class Pair:
    """Two comparable runs."""

    first: Run
    second: Run

    @classmethod
    def open(cls, first: Path, second: Path) -> Pair:
        """Read two runs and refuse those that cannot be compared.

        Raises:
            SpecError: Data, forget set, score formats, or versions of data, task or audits differ (the message says
                which); or a folder holds no finished run.
            RunError: A file of a record is missing or damaged.
        """
        ours, theirs = _score_format(first), _score_format(second)
        if None not in (ours, theirs) and ours != theirs:
            raise _differ("the formats of their scores", ours, theirs)
        pair = cls(Run.open(first), Run.open(second))
        pair._check()
        return pair

    @cached_property
    def names(self) -> tuple[str, str]:
        """Names of the two runs, numbered if they are equal."""
        a, b = self.first.name, self.second.name
        return (a, b) if a != b else (f"{a} (1)", f"{b} (2)")

    @property
    def seeds(self) -> list[int]:
        """The seeds of both runs; differences are means over these."""
        return [seed for seed in self.first.table.seeds if seed in self.second.table.seeds]

    @property
    def models(self) -> list[str]:
        """The models of either run, those of the first run first."""
        return list(dict.fromkeys([*self.first.table.models, *self.second.table.models]))

    @property
    def attacks(self) -> list[str]:
        """The attacks of either run."""
        return list(dict.fromkeys([*self.first.table.attacks, *self.second.table.attacks]))

    def _check(self) -> None:
        a, b = self.first, self.second
        for part in SAME:
            for key, ours, theirs in differences(a.spec.get(part), b.spec.get(part), part):
                raise _differ(key, ours, theirs)
        self._check_inputs()
        self._check_versions()
        if a.table.about_one_model != b.table.about_one_model:
            raise SpecError("one run is about one model, the other about methods", where="compare")
        if not self.seeds:
            raise _differ("their seeds", list(a.table.seeds), list(b.table.seeds))
        for metric in (key for key in a.table.keys if key in b.table.keys):
            self._check_metric(metric)

    def _check_inputs(self) -> None:
        """Refuse files of data or forget set that have one name and two contents; older records hold no digests."""
        inputs = [run.environment.get("inputs") for run in (self.first, self.second)]
        ours, theirs = (table if isinstance(table, dict) else {} for table in inputs)
        for place in (place for place in ours if place in theirs and place.partition(".")[0] in SAME):
            if ours[place] != theirs[place]:
                raise _differ(f"the contents of {place}", ours[place], theirs[place])

    def _check_versions(self) -> None:
        a, b = (run.versions for run in (self.first, self.second))
        for table in VERSIONED:
            for part in (name for name in a.get(table, {}) if name in b.get(table, {})):
                ours, theirs = a[table][part], b[table][part]
                if ours != theirs:
                    raise SpecError(
                        f"{table} {part!r} has version {ours} in {self.names[0]} and {theirs} in {self.names[1]}",
                        where="compare",
                        allowed="the same version of data, task and audits: other versions give other numbers",
                        remedy="run the older run again",
                    )

    def _check_metric(self, key: Key) -> None:
        runs = self.first, self.second
        first, second = (next(m.scores for m in run.table.measured if m.scores.key == key) for run in runs)
        for fact in FACTS:
            ours, theirs = getattr(first, fact), getattr(second, fact)
            if ours != theirs:
                raise _differ(f"the {fact} of {key[0]} on {key[1]}", ours, theirs)
        if key[1] not in ("forget", "test"):
            return
        for seed in self.seeds:
            a, b = (run.table.get(ORIGINAL, seed, None, key) for run in runs)
            if a is not None and b is not None and not np.array_equal(a.ids, b.ids):
                what = f"the examples that {key[0]} on {key[1]} was measured on with seed {seed}"
                raise _differ(what, f"{a.ids.size} ids", f"{b.ids.size} ids")

    def settings(self) -> list[Json]:
        """Settings and versions that differ, key by key."""
        a, b = ({k: v for k, v in run.spec.items() if k not in NOT_SETTINGS} for run in (self.first, self.second))
        changes = [*differences(a, b, ""), *self._other_versions()]
        return [{"key": key, "first": ours, "second": theirs} for key, ours, theirs in changes]

    def _other_versions(self) -> Iterator[tuple[str, Any, Any]]:
        """Versions that differ of parts that both runs used, if both records hold them."""
        for key, ours, theirs in differences(self.first.versions, self.second.versions, "version"):
            if isinstance(ours, int) and isinstance(theirs, int):
                yield key, ours, theirs

    def verdicts(self) -> list[Json]:
        """Each method with the verdicts of both runs, none if a run did not try it."""
        first, second = ({v["model"]: v for v in run.verdicts} for run in (self.first, self.second))
        models = [model for model in self.models if model in first or model in second]
        return [{"model": model, "first": first.get(model), "second": second.get(model)} for model in models]

    def rows(self) -> list[Json]:
        """Every estimate of either run, with the difference, second minus first, over the shared seeds."""
        keys = list(dict.fromkeys([*self.first.table.keys, *self.second.table.keys]))
        places = [(key, attack, model) for key in keys for attack in (None, *self.attacks) for model in self.models]
        return [row for key, attack, model in places if (row := self._row(key, attack, model)) is not None]

    def _row(self, key: Key, attack: str | None, model: str) -> Json | None:
        rows = [run.rows.get((model, attack, key)) for run in (self.first, self.second)]
        known = next((row for row in rows if row is not None), None)
        if known is None:
            return None
        facts = {"model": model, "attack": attack, "metric": key[0], "split": key[1]}
        facts |= {name: known[name] for name in ("unit", "better")}
        values = [None if row is None else {name: row[name] for name in ("value", "low", "high")} for row in rows]
        return facts | {"first": values[0], "second": values[1], "difference": self._difference(key, attack, model)}

    def _difference(self, key: Key, attack: str | None, model: str) -> Json | None:
        pairs: list[tuple[Scores, Scores]] = []
        for seed in self.seeds:
            a, b = (run.table.get(model, seed, attack, key) for run in (self.first, self.second))
            if a is not None and b is not None:
                pairs.append((a, b))
        if not pairs:
            return None
        value, low, high = student(np.array([b.reduced() - a.reduced() for a, b in pairs]))
        return {"value": value, "low": low, "high": high, "seeds": len(pairs)}

    def as_json(self) -> Json:
        """Plain data."""
        verdicts = [
            {"model": v["model"], **{k: v[k] and v[k]["verdict"] for k in ("first", "second")}} for v in self.verdicts()
        ]
        return {
            "runs": [str(self.first.folder), str(self.second.folder)],
            "seeds": self.seeds,
            "settings": self.settings(),
            "verdicts": verdicts,
            "rows": self.rows(),
        }


def _score_format(folder: Path) -> int | None:
    """The format of a run's scores, none if it cannot be read."""
    try:
        file = read_manifest(folder).file("scores")
        content = read_inside(folder, file.path) if file else b""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return int(json.loads(header["__metadata__"]["expunge"])["format"])
    except (ExpungeError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # opening the run will report the mistake


def _differ(what: str, ours: Any, theirs: Any) -> SpecError:
    return SpecError(
        f"{what} differ: {ours!r} and {theirs!r}",
        where="compare",
        allowed="two runs on the same data and forget set, with the same format of scores",
    )


def differences(a: Any, b: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Differences of two pieces of plain data: place and both values. Tables in lists are matched by label or name."""
    a, b = _named(a), _named(b)
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from differences(a.get(key), b.get(key), f"{place}.{key}" if place else str(key))
    elif a != b:
        yield place, a, b


def _named(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return {item.get("label", item["name"]): item for item in value}
    return value


def comparison_table(pair: Pair) -> str:
    """The comparison in short form for the terminal: verdicts, differences (second minus first), and settings."""
    rows = {(row["model"], row["attack"], (row["metric"], row["split"])): row for row in pair.rows()}
    columns = {name: place for name, place in columns_of(pair.first.table).items() if name != "L2"}
    verdicts = {v["model"]: [v[k]["verdict"] if v[k] else "-" for k in ("first", "second")] for v in pair.verdicts()}
    lines = [["model", *pair.names, *columns]]
    for model in pair.models:
        cells = [difference_text(rows.get((model, *place))) for place in columns.values()]
        lines.append([model, *verdicts.get(model, ["", ""]), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    seeds = ", ".join(map(str, pair.seeds))
    note = f"Numbers are {pair.names[1]} minus {pair.names[0]} over seeds {seeds} ± half the 90 % interval, in points."
    lines_of = ((line["key"], *(spelled_setting(line[k]) for k in ("first", "second"))) for line in pair.settings())
    changed = [f"  {key}: {ours} -> {theirs}" for key, ours, theirs in lines_of]
    return "\n".join([*text, "", note, "Run differently:" if changed else "Run with the same settings.", *changed])


def spelled_setting(value: Any) -> str:
    """A setting as TOML writes it; a whole table is only called present."""
    return "none" if value is None else "present" if isinstance(value, dict) else spelled_value(value)


def difference_text(row: Json | None) -> str:
    """A difference with the half-width of its interval; shares in points."""
    if row is None or row["difference"] is None:
        return ""
    value, half = row["difference"]["value"], (row["difference"]["high"] - row["difference"]["low"]) / 2
    sign = "+" if value >= 0 else ""
    text = f"{sign}{shown(value, row['unit'])}" if math.isfinite(value) else "not finite"
    return f"{text} ±{shown(half, row['unit'])}" if math.isfinite(half) else text
