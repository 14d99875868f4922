"""Two runs on the same data and the same forget set, side by side: what they were, found, and how far that differs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from expunge.base.errors import ExpungeError, SpecError
from expunge.base.manifest import read_manifest
from expunge.evidence.intervals import student
from expunge.evidence.scores import Scores
from expunge.evidence.table import ORIGINAL, Key
from expunge.reporting._toml import spelled_value
from expunge.reporting.record import Json, Run
from expunge.reporting.text import columns_of, shown

SAME = ("data", "forget")
"""Parts of the spec that must not differ."""
VERSIONED = ("data", "forget", "audit")
"""Tables of the spec whose parts must have the same version: what was measured, and how."""
FACTS = ("role", "unit", "better", "sign", "reduce")
"""What must be the same of a metric for its values to be comparable."""
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
            SpecError: Data, forget set, score formats, or versions of data, task or audits differ, names what; or a
                folder holds no finished run.
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
        """What the runs are called where they stand side by side."""
        a, b = self.first.name, self.second.name
        return (a, b) if a != b else (f"{a} (1)", f"{b} (2)")

    @property
    def seeds(self) -> list[int]:
        """The seeds that both have, over which differences are taken."""
        return [seed for seed in self.first.table.seeds if seed in self.second.table.seeds]

    @property
    def models(self) -> list[str]:
        """The models of either, those of the first run first."""
        return list(dict.fromkeys([*self.first.table.models, *self.second.table.models]))

    @property
    def attacks(self) -> list[str]:
        """The attacks of either."""
        return list(dict.fromkeys([*self.first.table.attacks, *self.second.table.attacks]))

    def _check(self) -> None:
        a, b = self.first, self.second
        for part in SAME:
            for key, ours, theirs in differences(a.spec.get(part), b.spec.get(part), part):
                raise _differ(key, ours, theirs)
        self._check_versions()
        if a.table.about_one_model != b.table.about_one_model:
            raise SpecError("one run is about one model, the other about methods", where="compare")
        if not self.seeds:
            raise _differ("their seeds", list(a.table.seeds), list(b.table.seeds))
        for metric in (key for key in a.table.keys if key in b.table.keys):
            self._check_metric(metric)

    def _check_versions(self) -> None:
        a, b = (run.versions for run in (self.first, self.second))
        for table in VERSIONED:
            for part in (name for name in a.get(table, {}) if name in b.get(table, {})):
                ours, theirs = a[table][part], b[table][part]
                if ours != theirs:
                    raise SpecError(
                        f"{table} {part!r} has version {ours} in {self.names[0]} and {theirs} in {self.names[1]}",
                        where="compare",
                        allowed="the same version of data, task and audits: another one gives other numbers",
                        remedy="run the older of them again",
                    )

    def _check_metric(self, key: Key) -> None:
        runs = self.first, self.second
        one, other = (next(m.scores for m in run.table.measured if m.scores.key == key) for run in runs)
        for fact in FACTS:
            ours, theirs = getattr(one, fact), getattr(other, fact)
            if ours != theirs:
                raise _differ(f"the {fact} of {key[0]} on {key[1]}", ours, theirs)
        if key[1] not in ("forget", "test"):
            return
        for seed in self.seeds:
            found = [run.table.get(ORIGINAL, seed, None, key) for run in runs]
            held = [entry for entry in found if entry is not None]
            if len(held) == 2 and not np.array_equal(held[0].ids, held[1].ids):
                what = f"the examples that {key[0]} on {key[1]} was measured on with seed {seed}"
                raise _differ(what, f"{held[0].ids.size} ids", f"{held[1].ids.size} ids")

    def settings(self) -> list[Json]:
        """What was run differently, key by key."""
        a, b = ({k: v for k, v in run.spec.items() if k not in NOT_SETTINGS} for run in (self.first, self.second))
        found = [*differences(a, b, ""), *self._other_versions()]
        return [{"key": key, "first": ours, "second": theirs} for key, ours, theirs in found]

    def _other_versions(self) -> Iterator[tuple[str, Any, Any]]:
        """Of parts that both used, as far as their records tell."""
        for key, ours, theirs in differences(self.first.versions, self.second.versions, "version"):
            if isinstance(ours, int) and isinstance(theirs, int):
                yield key, ours, theirs

    def verdicts(self) -> list[Json]:
        """Each method with the verdicts of both runs, none where a run did not try it."""
        found: list[Mapping[str, Json]] = [{v["model"]: v for v in run.verdicts} for run in (self.first, self.second)]
        models = [model for model in self.models if any(model in verdicts for verdicts in found)]
        return [{"model": model, "first": found[0].get(model), "second": found[1].get(model)} for model in models]

    def rows(self) -> list[Json]:
        """Every estimate of either run, with the difference, second minus first, over the seeds of both."""
        keys = list(dict.fromkeys([*self.first.table.keys, *self.second.table.keys]))
        places = [(key, attack, model) for key in keys for attack in (None, *self.attacks) for model in self.models]
        return [row for key, attack, model in places if (row := self._row(key, attack, model)) is not None]

    def _row(self, key: Key, attack: str | None, model: str) -> Json | None:
        found = [run.rows.get((model, attack, key)) for run in (self.first, self.second)]
        known = next((row for row in found if row is not None), None)
        if known is None:
            return None
        facts = {"model": model, "attack": attack, "metric": key[0], "split": key[1]}
        facts |= {name: known[name] for name in ("unit", "better")}
        values = [None if row is None else {name: row[name] for name in ("value", "low", "high")} for row in found]
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
    """The format of a run's scores, as far as it can be read at all."""
    try:
        path = read_manifest(folder).file("scores")
        content = (folder / path).read_bytes() if path else b""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return int(json.loads(header["__metadata__"]["expunge"])["format"])
    except (ExpungeError, OSError, ValueError, KeyError, TypeError):
        return None  # whoever opens the run says what is wrong with it


def _differ(what: str, ours: Any, theirs: Any) -> SpecError:
    return SpecError(
        f"{what} differ: {ours!r} and {theirs!r}",
        where="compare",
        allowed="two runs on the same data and forget set, with the same format of scores",
    )


def differences(a: Any, b: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two pieces of plain data differ: place, and what is there in each; lists of tables by label or name."""
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
    """The comparison in short, for the terminal: verdicts, and differences, second minus first."""
    rows = {(row["model"], row["attack"], (row["metric"], row["split"])): row for row in pair.rows()}
    columns = {name: place for name, place in columns_of(pair.first.table).items() if name != "L2"}
    verdicts = {v["model"]: [v[k]["verdict"] if v[k] else "-" for k in ("first", "second")] for v in pair.verdicts()}
    lines = [["model", *pair.names, *columns]]
    for model in pair.models:
        found = [rows.get((model, *place)) for place in columns.values()]
        lines.append([model, *verdicts.get(model, ["", ""]), *(told(row) for row in found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    seeds = ", ".join(map(str, pair.seeds))
    note = f"Numbers are {pair.names[1]} minus {pair.names[0]} over seeds {seeds} ± half the 90 % interval, in points."
    lines_of = ((line["key"], *(spelled_setting(line[k]) for k in ("first", "second"))) for line in pair.settings())
    changed = [f"  {key}: {ours} -> {theirs}" for key, ours, theirs in lines_of]
    return "\n".join([*text, "", note, "Run differently:" if changed else "Run with the same settings.", *changed])


def spelled_setting(value: Any) -> str:
    """A setting as TOML writes it; of a whole table only that it is there."""
    return "none" if value is None else "there" if isinstance(value, dict) else spelled_value(value)


def told(row: Json | None) -> str:
    """A difference with half its interval; shares in points."""
    if row is None or row["difference"] is None:
        return ""
    value, half = row["difference"]["value"], (row["difference"]["high"] - row["difference"]["low"]) / 2
    sign = "+" if value >= 0 else ""
    text = f"{sign}{shown(value, row['unit'])}" if math.isfinite(value) else "not finite"
    return f"{text} ±{shown(half, row['unit'])}" if math.isfinite(half) else text
