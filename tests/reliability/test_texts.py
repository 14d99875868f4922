"""Texts and models that do not belong together are refused by name before anything is trained; columns are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.base.errors import SpecError
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.train.chance import no_better_than_chance

transformers = pytest.importorskip("transformers")

VOCABULARY, POSITIONS = 50, 16
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LIMITS = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}


def gpt2() -> nn.Module:
    shape = {"n_positions": POSITIONS, "n_embd": 8, "n_layer": 2, "n_head": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, **shape))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **LIMITS))


def bert(kind: str = "BertForMaskedLM", **changes: Any) -> nn.Module:
    return getattr(transformers, kind)(transformers.BertConfig(**SMALL, **LIMITS, **changes))


def electra() -> nn.Module:
    return transformers.ElectraForMaskedLM(transformers.ElectraConfig(**SMALL, **LIMITS, embedding_size=16))


def t5() -> nn.Module:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **sizes))


def bart() -> nn.Module:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1}
    rest = {"decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**LIMITS, **sizes, **rest))


class Bidirectional(nn.Module):
    """A model of one's own that reads a text in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)
        self.both = nn.GRU(8, 4, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.both(self.embedding(tokens))[0])
        return logits


class Learned(nn.Module):
    """A model of one's own with learned positions."""

    def __init__(self, *, embedded: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)
        self.places = nn.Embedding(POSITIONS, 8)
        self.embedded = embedded

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        places = self.places(torch.arange(length)) if self.embedded else self.places.weight[:length]
        logits: Tensor = self.head(self.embedding(tokens) + places)
        return logits


def ids(count: int, length: int = 8, high: int = VOCABULARY, seed: int = 0) -> Tensor:
    return torch.randint(high, (count, length), generator=torch.Generator().manual_seed(seed + 100 * count))


def items(tokens: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": row} for row in tokens]


def case(model: Any, **changes: Any) -> Any:
    data = {name: items(ids(4, seed=i)) for i, name in enumerate(("forget", "retain", "test"))}
    return expunge.case(model, **(data | changes))


def long() -> dict[str, Any]:
    return {name: items(ids(4, 20, seed=i)) for i, name in enumerate(("forget", "retain", "test"))}


def high(name: str = "forget") -> dict[str, Any]:
    tokens = ids(4)
    tokens[3, 5] = VOCABULARY + 7
    return {name: items(tokens)}


UNFIT: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]], str]] = {
    "T5": (t5, dict, "T5ForConditionalGeneration has an encoder and a decoder; allowed: a causal"),
    "BART": (bart, dict, "BartForConditionalGeneration has an encoder and a decoder"),
    "a masked model": (bert, dict, "BertForMaskedLM sees later tokens.*ForCausalLM"),
    "another masked model": (electra, dict, "ElectraForMaskedLM sees later tokens"),
    "a BERT that was not made a decoder": (lambda: bert("BertLMHeadModel"), dict, "sees later tokens.*is_decoder"),
    "an own model in both directions": (Bidirectional, dict, "Bidirectional sees later tokens"),
    "too long for GPT-2": (gpt2, long, "texts have 20 tokens; allowed: at most 16, the model's positions; cut"),
    "too long for Llama": (llama, long, "texts have 20 tokens; allowed: at most 16"),
    "too long for own positions": (lambda: Learned(embedded=True), long, "model .Learned.: texts have 20 tokens"),
    "too long for own weights": (lambda: Learned(embedded=False), long, "model .Learned.: texts have 20 tokens"),
    "a token outside of GPT-2": (gpt2, high, "token 57 .text 3, position 5. is outside the vocabulary.*0 to 49"),
    "a token outside, in the test set": (gpt2, lambda: high("test"), "token 57 .text 11, position 5. is outside"),
    "a token outside of an own model": (lambda: Learned(embedded=True), high, "token 57 .* outside .* Learned"),
    "a negative token": (gpt2, lambda: {"retain": items(torch.full((4, 8), IGNORE))}, "token -100 is negative"),
    "a path": (lambda: "llama_ft", dict, "^model: found 'llama_ft'; .*load it: .*from_pretrained"),
    "a Path": (lambda: Path("llama_ft"), dict, "^model: found 'llama_ft'; .*load it"),
    "weights": (lambda: gpt2().state_dict(), dict, "^model: found OrderedDict; .*load_state_dict"),
    "a class": (lambda: transformers.GPT2LMHeadModel, dict, "^model: found the class GPT2LMHeadModel"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_model_and_texts_that_do_not_fit_are_refused_by_name(name: str) -> None:
    model, changes, told = UNFIT[name]
    with pytest.raises(SpecError, match=told):
        case(model(), **changes())


@pytest.mark.parametrize(
    "model", [gpt2, llama, lambda: bert("BertLMHeadModel", is_decoder=True), lambda: Learned(embedded=True)]
)
def test_causal_models_are_taken_and_keep_their_modes(model: Callable[[], nn.Module]) -> None:
    given = model().train()
    made = case(given)
    assert made.original is given and all(module.training for module in given.modules())
    assert len(made.problem.data.labels) == VOCABULARY


def test_a_model_in_both_directions_may_tag_tokens() -> None:
    """Targets that are no tokens of the text cannot be seen in it."""
    tagged = {
        name: (ids(6, seed=i), ids(6, high=5, seed=i + 10)) for i, name in enumerate(("forget", "retain", "test"))
    }
    assert expunge.case(Bidirectional(), **tagged).problem.data.has_tokens


def shifted(tokens: Tensor, by: int) -> Tensor:
    """Targets from `by` places further on; IGNORE where there is none."""
    inside = (torch.arange(tokens.shape[1]) + by >= 0) & (torch.arange(tokens.shape[1]) + by < tokens.shape[1])
    return torch.where(inside, tokens.roll(-by, 1), IGNORE)


def masked(tokens: Tensor) -> Tensor:
    """Aligned labels of the second half only, as a prompt is masked."""
    labels = tokens.clone()
    labels[:, : tokens.shape[1] // 2] = IGNORE
    return labels


def data(train: Tensor, train_targets: Tensor, test: Tensor, test_targets: Tensor) -> Data:
    rows, n = torch.cat([train, test]), len(train)
    labels = tuple(map(str, range(VOCABULARY)))
    targets = torch.cat([train_targets, test_targets])
    return Data(rows, targets, torch.arange(n), torch.arange(n, len(rows)), labels)


def pairs() -> dict[str, Any]:
    return {name: list(zip(A, A, strict=True)) for name in ("forget", "retain", "test")}


LAZY: dict[str, Any] = {"in_memory": False, "objective": "language_modelling"}
A, B, C = ids(9), ids(12), ids(5)
OWN_PLACE = "tokens at their own positions; allowed: the next token at each position; shift them by one"
MISALIGNED: dict[str, tuple[Callable[[], object], str]] = {
    "labels as Hugging Face wants them, in Data": (lambda: data(A, A, B, B), OWN_PLACE),
    "with the prompt masked": (lambda: data(A, masked(A), B, masked(B)), OWN_PLACE),
    "only the test set": (lambda: data(A, shifted(A, 1), C, C), OWN_PLACE),
    "a pair of tensors": (lambda: case(gpt2(), retain=(A, A)), f"^retain: the targets are the {OWN_PLACE}"),
    "a pair of arrays": (lambda: case(gpt2(), test=(A.numpy(), A.numpy())), f"^test: the targets are the {OWN_PLACE}"),
    "not in memory": (lambda: expunge.case(gpt2(), **pairs(), **LAZY), OWN_PLACE),
    "shifted already, in dicts": (
        lambda: case(gpt2(), forget=[{"input_ids": x, "labels": y} for x, y in zip(A, shifted(A, 1), strict=True)]),
        "^forget: the targets are the tokens two places further on; .*shifted twice",
    ),
    "shifted the other way": (lambda: data(A, shifted(A, -1), B, shifted(B, -1)), "tokens before their positions"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISALIGNED)
def test_targets_from_a_wrong_place_are_refused(name: str) -> None:
    make, told = MISALIGNED[name]
    with pytest.raises(SpecError, match=told):
        make()


@pytest.mark.parametrize("targets", [shifted(A, 1), torch.zeros_like(A), A.flip(1), masked(shifted(A, 1))])
def test_next_tokens_and_other_targets_are_taken(targets: Tensor) -> None:
    assert data(A, targets, B, shifted(B, 1)).has_tokens
    constant = torch.ones(4, 8, dtype=torch.int64)
    assert data(constant, constant, constant, constant).has_tokens


ROWS = ids(4)
COLUMNS: dict[str, Any] = {
    "tensors": {"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS)},
    "a tokenizer's result": transformers.BatchEncoding({"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS)}),
    "lists": {"input_ids": ROWS.tolist(), "labels": ROWS.tolist()},
    "arrays": {"input_ids": ROWS.numpy()},
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_dict_of_columns_is_a_data_set(name: str, lazy: bool) -> None:
    given = {name: items(ids(5, seed=i)) for i, name in enumerate(("retain", "test"))}
    made = expunge.case(gpt2(), forget=COLUMNS[name], **given, **(LAZY if lazy else {}))
    batch = made.problem.data.batch(made.problem.forget)
    assert torch.equal(batch.inputs, ROWS)
    assert torch.equal(batch.targets, shifted(ROWS, 1))


def test_a_dict_of_pictures_is_a_data_set() -> None:
    given = {
        name: {"pixel_values": torch.rand(5, 1, 2, 2), "labels": torch.arange(5)}
        for name in ("forget", "retain", "test")
    }
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    assert expunge.case(model, **given).problem.data.targets.tolist() == list(range(5)) * 3


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"input_ids": [[1, 2], [3]]}, "column 'input_ids' is no array.*pad the texts"),
        ({"input_ids": [1, 2, 3]}, r"found one item, of shape \[3\]"),
        ({"input_ids": ROWS, "labels": ROWS[:3]}, "columns have lengths .*4.*3"),
        ({"train": items(ROWS), "test": items(ROWS)}, r"keys train, test.*\['train'\]"),
        ({}, "give at least one item"),
    ],
)
def test_columns_that_are_no_data_set_are_refused(columns: Any, told: str) -> None:
    with pytest.raises(SpecError, match=f"^forget: .*{told}"):
        case(gpt2(), forget=columns)


def vectors(seed: int, count: int = 5) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


def together(a: Any, b: Any) -> Any:
    return tuple(torch.cat(parts) for parts in zip(a, b, strict=True))


RETAINED: dict[str, tuple[nn.Module, Any, Any, Any]] = {
    "the same texts": (gpt2(), items(A), items(A), items(B)),
    "texts inside": (gpt2(), items(A[:2]), items(torch.cat([C, A])), items(B)),
    "copies of one text": (gpt2(), items(A[:1].repeat(3, 1)), items(A), items(B)),
    "vectors": (nn.Linear(4, 3), vectors(1), together(vectors(2), vectors(1)), vectors(3)),
}


@pytest.mark.parametrize("name", RETAINED)
def test_a_forget_set_inside_the_retain_set_is_refused(name: str) -> None:
    model, forget, retain, test = RETAINED[name]
    with pytest.raises(SpecError, match=r"^forget: all \d+ forget examples are in the retain set, too"):
        expunge.case(model, forget=forget, retain=retain, test=test)


def test_the_same_inputs_with_other_labels_may_be_forgotten() -> None:
    (x, y), retain = vectors(1), vectors(2)
    assert expunge.case(nn.Linear(4, 3), forget=(x, (y + 1) % 3), retain=together(retain, (x, y)), test=vectors(3))


class Answers(nn.Module):
    """Logits of one class, or of the right ones."""

    def __init__(self, knows: float) -> None:
        super().__init__()
        self.knows = nn.Parameter(torch.tensor(knows))

    def forward(self, x: Tensor) -> Tensor:
        return self.knows * x + torch.tensor([0.5, 0.0, 0.0])


def answered() -> Problem:
    targets = torch.arange(150) % 3
    pool = Data(nn.functional.one_hot(targets).float(), targets, torch.arange(120), torch.arange(120, 150))
    return Problem(pool, torch.arange(20), torch.arange(20, 120), pool.test)


def test_an_original_at_chance_is_named_and_one_that_knows_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert no_better_than_chance(Answers(1.0), answered()) == ""
    told = no_better_than_chance(Answers(0.0), answered())
    share = re.search(r"gets (\d+\.\d) % of 64 retained examples right, .* gets (\d+\.\d) %", told)
    assert share is not None and 20 < float(share[1]) < 45 and "nothing can be forgotten" in told
    case(gpt2())
    assert "warning: the model gets" in capsys.readouterr().err
