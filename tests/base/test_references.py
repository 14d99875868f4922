"""Sources are found by key, in one file that is read strictly."""

from __future__ import annotations

import pytest

from expunge.base.errors import SpecError
from expunge.base.references import bibtex, parse, references

A = "@article{a2020x,\n  title = {A {B}},\n  year = {2020},\n}"
B = "@misc{b2021y,\n  title = {C},\n}"


def test_entries_are_kept_as_they_stand() -> None:
    assert parse(f"{A}\n\n{B}\n") == {"a2020x": A, "b2021y": B}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{A}\n\n{A}", "'a2020x' occurs twice"),
        (f"{A}\n{B}", "cannot read the entry"),
        ("@article{a2020x,\n  title = {A {B},\n}", "cannot read the entry '@article{a2020x,'"),
        ("@article{a2020x, title = {A}}", "cannot read the entry"),
        ("@article{a2020x,\n}", "cannot read the entry"),
        (f"{A}\n\nwords", "cannot read the entry 'words'"),
    ],
)
def test_any_other_form_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=rf"references\.bib.*{words}"):
        parse(text)


def test_a_part_has_none_one_or_more() -> None:
    known = references()
    assert bibtex("", where="x") == [] and bibtex((), where="x") == []
    assert bibtex("schoepf2025rem", where="x") == [known["schoepf2025rem"]]
    assert bibtex(("schoepf2025rem", "zhang2024npo"), where="x") == [known["schoepf2025rem"], known["zhang2024npo"]]


def test_a_part_of_another_package_gives_its_own() -> None:
    assert bibtex(A, where="theirs") == [A]


def test_an_unknown_key_names_part_and_key() -> None:
    with pytest.raises(SpecError, match=r"my_method\.cite: unknown reference 'schoepf2025rm'.*'schoepf2025rem'"):
        bibtex("schoepf2025rm", where="my_method")
