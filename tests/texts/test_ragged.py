"""Notebook texts of different lengths: rows of a `datasets` object, tokenizers' results, dicts and pairs of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import expunge
from expunge.base.errors import SpecError
from expunge.core.copies import copies_in
from expunge.core.objective import IGNORE

transformers = pytest.importorskip("transformers")

VOCABULARY, PAD = 40, 39
LENGTHS = {"forget": (3, 5), "retain": (4, 9, 6), "test": (7, 2, 4)}


def tokens(name: str) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(name))
    return [torch.randint(1, 30, (length,), generator=generator).tolist() for length in LENGTHS[name]]


class Rows:
    """What `datasets.Dataset` is to its readers: rows are dicts of lists, a text gives a column."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def encoding(rows: list[list[int]]) -> Any:
    """`tokenizer(texts, padding=True, return_tensors="pt")`, with labels as a collator for language models gives."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return transformers.BatchEncoding(
        {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    )


def pairs(rows: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.tensor(row), torch.tensor([*row[1:], IGNORE])) for row in rows]


FORMS: dict[str, Any] = {
    "rows of datasets": lambda rows: Rows([{"input_ids": row, "labels": row, "text": "a"} for row in rows]),
    "dicts without labels": lambda rows: [{"input_ids": torch.tensor(row)} for row in rows],
    "a tokenizer's results": encoding,
    "batches of them": lambda rows: [encoding(rows[:1]), encoding(rows[1:])],
    "pairs": pairs,
}


def model() -> Any:
    shape = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, **shape))


@pytest.mark.parametrize("form", FORMS)
def test_texts_of_different_lengths_are_padded_to_one(form: str) -> None:
    made = expunge.case(model(), **{name: FORMS[form](tokens(name)) for name in LENGTHS})
    data = made.problem.data
    assert data.shape == (9,)
    every = [row for name in LENGTHS for row in tokens(name)]
    for row, given in enumerate(every):
        assert data.inputs[row].tolist() == given + [0] * (9 - len(given))
        assert data.targets[row].tolist() == given[1:] + [IGNORE] * (10 - len(given))


@pytest.mark.parametrize("form", FORMS)
def test_copies_are_found_whatever_they_are_padded_to(form: str) -> None:
    retain = [*tokens("retain"), tokens("forget")[0]]
    sets = {"forget": tokens("forget"), "retain": retain, "test": tokens("test")}
    made = expunge.case(model(), **{name: FORMS[form](rows) for name, rows in sets.items()})
    assert "1 of 2 examples have a copy in retain" in copies_in(made.problem)[0]
    retained = sets | {"retain": [*tokens("retain"), *tokens("forget")]}
    with pytest.raises(SpecError, match="in the retain set, too"):
        expunge.case(model(), **{name: FORMS[form](rows) for name, rows in retained.items()})


def test_images_of_different_sizes_are_still_refused() -> None:
    images = [
        (torch.zeros(2, 4, dtype=torch.int64), torch.tensor(0)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor(1)),
    ]
    with pytest.raises(SpecError, match="examples have shapes"):
        expunge.case(model(), forget=images, retain=images, test=images)
