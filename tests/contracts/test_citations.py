"""What parts cite is in `references.bib`, and what is in there is cited."""

from __future__ import annotations

import re

import pytest

from expunge.base import registry
from expunge.base.references import bibtex, references

PARTS = [(kind, name) for kind in registry.FOLDERS for name in registry.names(kind)]


def keys(kind: str, name: str) -> tuple[str, ...]:
    cite = registry.load(kind, name).cite
    return tuple(key for key in ((cite,) if isinstance(cite, str) else cite) if key)


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}-{name}" for kind, name in PARTS])
def test_every_key_is_there(kind: str, name: str) -> None:
    assert not any(key.startswith("@") for key in keys(kind, name)), "a source of ours belongs into references.bib"
    assert len(bibtex(keys(kind, name), where=name)) == len(set(keys(kind, name)))


def test_every_entry_is_cited() -> None:
    assert {key for part in PARTS for key in keys(*part)} == references().keys()


def test_every_study_cites_its_paper() -> None:
    assert [name for name in registry.names("study") if not keys("study", name)] == []


def test_entries_are_sorted_and_say_who_what_and_when() -> None:
    assert list(references()) == sorted(references())
    for key, entry in references().items():
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
        assert {"title", "author", "year"} <= fields.keys(), key
        assert re.search(r"\d{4}", key)[0] == fields["year"], key


def test_no_source_stands_twice_under_two_keys() -> None:
    titles = [re.search(r"title = \{(.*)\}", entry)[1].lower() for entry in references().values()]
    assert len(titles) == len(set(titles))
