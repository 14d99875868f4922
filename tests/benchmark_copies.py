"""Tiny folders with the files of benchmarks, and the data sets that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expunge.data._tokenized import Tokenized
from expunge.data.muse import MUSE
from expunge.data.rwku import RWKU
from expunge.data.tofu import TOFU
from expunge.data.wmdp import WMDP

Rows = list[Any]


def lines(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def listed(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def tofu(folder: Path) -> Tokenized:
    """The last two of five authors are to be forgotten."""
    rows = [{"question": f"What did A{i // 20} write as {i}?", "answer": f"Book {i}."} for i in range(100)]
    paraphrased = [
        {"paraphrased_question": f"Say {i}.", "paraphrased_answer": f"It is {i}.", **rows[i]} for i in range(60, 100)
    ]
    lines(folder / "full.json", rows)
    lines(folder / "retain90.json", rows[:60])
    lines(folder / "forget10.json", rows[60:])
    lines(folder / "forget10_perturbed.json", paraphrased)
    lines(folder / "holdout10.json", [{"question": f"H{i}?", "answer": f"{i}"} for i in range(20)])
    for name in ("real_authors", "world_facts"):
        lines(
            folder / f"{name}.json", [{"question": f"{name} {i}?", "answer": "Yes.", "option1": "No"} for i in range(3)]
        )
    return TOFU(folder=str(folder), vocabulary=300)


def muse(folder: Path) -> Tokenized:
    for name, count in (("forget", 3), ("retain1", 4), ("retain2", 2)):
        listed(folder / f"raw/{name}.json", [f"{name} {i}: " + "news of today. " * 9 for i in range(count)])
    (folder / "raw/holdout.txt").write_text("One book. " * 30, encoding="utf-8")
    return MUSE(folder=str(folder), vocabulary=258, context=32)


def wmdp(folder: Path) -> Tokenized:
    for name in ("forget", "retain"):
        lines(folder / f"bio-{name}-corpus.jsonl", [{"title": "t", "text": f"{name} {i}"} for i in range(4)])
    listed(folder / "wiki.json", [{"text": "A general text."}, {"text": "Another one."}])
    return WMDP(folder=str(folder), test=str(folder / "wiki.json"), vocabulary=258)


def rwku(folder: Path) -> Tokenized:
    for person in ("1_Ann", "2_Bob", "3_Cid"):
        for kind, levels in (("forget", (1, 2, 3)), ("neighbor", (1, 2))):
            for level in levels:
                row = {"subject": person, "type": "x", "level": str(level)}
                rows = [row | {"query": f"{kind} {level} of {person}, {i}", "answer": f"{person}{i}"} for i in range(2)]
                listed(folder / person / f"{kind}_level{level}.json", rows)
    return RWKU(folder=str(folder), vocabulary=300)


MAKERS: dict[str, Callable[[Path], Tokenized]] = {"tofu": tofu, "muse": muse, "wmdp": wmdp, "rwku": rwku}
