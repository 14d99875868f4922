"""`claims.toml` becomes the claims that it says, and nothing that it does not say is taken for granted."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.base.errors import SpecError
from expunge.evidence.claim import Claim, above, below, ordered, within
from expunge.study.claims import read_claims

COMMON = 'statement = "S."\nsource = "ours"\nunit = "share"\nreason = "Because."\n'
ONE = f'[[claim]]\nid = "a"\n{COMMON}'


def read(tmp_path: Path, text: str) -> tuple[Claim, ...]:
    (tmp_path / "claims.toml").write_text(text)
    return read_claims(tmp_path / "study.py")


def test_every_rule_and_key_arrives_in_the_order_of_the_file(tmp_path: Path) -> None:
    rules = {"d": "ordered = 0.25", "a": "above = 0", "b": "below = -0.5", "c": "within = [-0.05, 0.05]"}
    text = "\n".join(f'[[claim]]\nid = "{name}"\n{COMMON}{rule}' for name, rule in rules.items())
    text += '\nprimary = true\nexact = true\npaper_value = "about 3"\n'
    common = {"statement": "S.", "source": "ours", "unit": "share"}
    assert read(tmp_path, text) == (
        Claim("d", rule=ordered("Because.", 0.25), **common),
        Claim("a", rule=above(0.0, "Because."), **common),
        Claim("b", rule=below(-0.5, "Because."), **common),
        Claim("c", rule=within(-0.05, 0.05, "Because."), primary=True, exact=True, paper_value="about 3", **common),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ONE + "above = 0.0\nprimery = true", r"claim\[0\].*primery.*did you mean 'primary'"),
        (ONE + 'above = "0"', r"claim\[0\].*float.*above"),
        (ONE + "within = [0.1]", r"claim\[0\].*length 2.*within"),
        (ONE + "above = 0.0\nbelow = 1.0", r"2 rules.*one of above, below, within, ordered"),
        (ONE, r"0 rules"),
        ('[[claim]]\nid = "a"\nabove = 0.0', r"missing required field `statement`"),
        (ONE + "above = 0.0\n" + ONE + "above = 0.0", r"'a' occurs 2 times"),
        (ONE + "above = 0.0\n[[claims]]\n", r"unknown key 'claims'.*did you mean 'claim'"),
        ("", "there is no claim"),
        ("claim = 3", "there is no claim"),
        ("claim = [3]", r"claim\[0\].*a table"),
        ("[[claim]", "cannot read the claims"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=r"claims\.toml") as error:
        read(tmp_path, text)
    assert error.match(rf"(?s){words}")


def test_a_study_without_claims_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read the claims.*allowed: a file in TOML"):
        read_claims(tmp_path / "study.py")
