"""The model card: written from a record, it says what was shown, and nothing that was not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from _written import KNOWN, accept_digest

from expunge.base.errors import RunError
from expunge.reporting.cards import MEANINGS
from expunge.reporting.model_card import Unaudited, card_of, unaudited_card

Make = Callable[..., Path]
ALONE = {model: values for model, values in KNOWN.items() if model != "reference"} | {"clean": (0.9, 0.9)}


@pytest.mark.parametrize("about_one_model", [False, True])
@pytest.mark.parametrize(
    ("label", "verdict", "facts"),
    [
        ("clean", "erased", {}),
        ("hidden", "dormant", {}),
        ("clean", "inconclusive", {"attacks": []}),
        ("hidden", "inconclusive", {"seeds": [0]}),
        ("clean", "inconclusive", {"known": KNOWN | {"original": (0.1, None)}}),
    ],
)
def test_the_card_says_the_verdict_and_why(
    make_run: Make, label: str, verdict: str, facts: dict, about_one_model: bool
) -> None:
    folder = make_run(about_one_model=about_one_model, **facts)
    card = card_of(folder, label, transformers=True)
    stored = next(v for v in json.loads((folder / "verdicts.json").read_text()) if v["model"] == label)
    assert stored["verdict"] == verdict
    assert f"**{verdict}**. {MEANINGS[verdict]}" in card
    assert all(f"- {reason}" in card for reason in stored["reasons"])
    for other in MEANINGS.keys() - {verdict, *stored["flags"]}:
        assert f"**{other}**" not in card
    claim = (
        "about this one model" if about_one_model else f"about the method, over {len(facts.get('seeds', [0, 1, 2]))}"
    )
    assert claim in card and "no reference" not in card
    assert ("No attack was run" in card) == (facts.get("attacks") == [])
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_without_references_it_says_so_and_clears_nobody(make_run: Make) -> None:
    folder = make_run(known=ALONE, seeds=[0], about_one_model=True)
    for label in ("clean", "hidden"):
        card = card_of(folder, label, transformers=False)
        assert "**no reference**" in card and "**erased**" not in card
        assert "never saw the forget set; it went through" not in card
        assert "library_name" not in card


def test_it_names_the_record_and_the_weights_by_their_digests(make_run: Make) -> None:
    folder = make_run()
    card = card_of(folder, "clean", transformers=False)
    for path in (folder / "manifest.json", folder / "models" / "clean-s0.safetensors"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card


def test_it_counts_what_was_forgotten_and_shows_no_words_of_it(make_run: Make) -> None:
    folder = make_run()
    env = json.loads((folder / "env.json").read_text()) | {"counts": {"forget": 250, "retain": 1200}}
    (folder / "env.json").write_text(json.dumps(env))
    spec = json.loads((folder / "spec.json").read_text())
    spec["forget"] = {"name": "people:named", "who": "Ada Example", "count": 250}
    (folder / "spec.json").write_text(json.dumps(spec))
    accept_digest(folder, "env.json", "spec.json")
    card = card_of(folder, "clean", transformers=False)
    assert "250 training examples to forget, 1200 to keep" in card and "200 of those to forget were scored" in card
    assert "count = 250" in card and "Ada" not in card


def test_a_damaged_record_gets_no_card(make_run: Make) -> None:
    folder = make_run()
    text = (folder / "verdicts.json").read_text()
    (folder / "verdicts.json").write_text(text.replace('"dormant"', '"erased"'))
    accept_digest(folder, "verdicts.json")
    with pytest.raises(RunError):
        card_of(folder, "hidden", transformers=False)


def test_a_chain_of_methods_is_told_in_order_and_an_unaudited_model_claims_nothing() -> None:
    methods = [
        {"name": "npo", "label": "last", "after": "first", "beta": 0.5},
        {"name": "finetune", "label": "first", "epochs": 2},
    ]
    spec = {"method": methods, "forget": {"name": "indices", "path": "private.json"}}
    card = unaudited_card(Unaudited("mine", spec, {"forget": 3, "retain": 9}), "last", transformers=True)
    assert "**Not audited.**" in card and not any(f"**{flag}**" in card for flag in MEANINGS)
    assert card.index("Method: `finetune` with epochs = 2.") < card.index("Then: `npo` with beta = 0.5.")
    assert "3 training examples to forget, 9 to keep" in card and "private" not in card
