"""A language model's own in-context answers beside those of concept regression, on questions about real countries."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.base.seeds import derive
from expunge.core.choices import MultipleChoice, chosen_among, option_texts
from expunge.core.data import Data
from expunge.core.features import last_hidden
from expunge.core.hf_folder import CONFIG, quietly, transformers_library
from expunge.data.factbook import Factbook
from expunge.numerics.concept_regression import Normalisation, fit_concept
from expunge.tasks.given import Given
from expunge.train.option_embeddings import embed_options

DIMENSION, RIDGE = 8, 1.0
BATCH = 16
"""Texts that are scored at a time behind their common prompt."""


def loaded(folder: str) -> Any:
    """The language model of a folder.

    Raises:
        MissingError: There is no such folder, or transformers is not installed.
    """
    if not (Path(folder) / CONFIG).is_file():
        remedy = "run 'python examples/smollm2.py' in the clone; it says which package it needs"
        raise MissingError(f"there is no model in {folder or 'no folder'}", where="setting model", remedy=remedy)
    auto = transformers_library().AutoModelForCausalLM
    model: nn.Module = quietly("setting model", folder, lambda: auto.from_pretrained(folder, local_files_only=True))
    return model.eval()


def accuracies(folder: str, count: int, numbers: Sequence[int], seed: int) -> dict[str, list[float]]:
    """Accuracy on `count` questions after each number of demonstrations.

    Returns:
        `total` and `mean`: of the model's own answers, the option whose tokens have the largest sum, or mean, of
        log-probabilities behind the demonstrations as a prompt. `read`: of concept regression.

    Raises:
        MissingError: The model, or the package of the questions, is missing.
    """
    model = loaded(folder)
    data = Factbook(tokenizer=folder)()
    problem = Given()(data, seed, {})
    order = torch.randperm(len(problem.retain), generator=torch.Generator().manual_seed(derive(seed, "factbook")))
    asked, shown = (
        chosen_among(data, problem.retain[ids]) for ids in (order[:count], order[count : count + max(numbers)])
    )
    right, known = (torch.tensor([question.right for question in of]) for of in (asked, shown))
    site = last_hidden(model, problem, "layer")
    raw, pool = (embed_options(model, problem, of, site) for of in (asked, shown))
    normalised = Normalisation.fit(pool, DIMENSION)
    table: dict[str, list[float]] = {"total": [], "mean": [], "read": []}
    for number in numbers:
        total, mean = prompted_scores(model, data, shown[:number], asked)
        concept = fit_concept(normalised(pool[:number]), known[:number], ridge=RIDGE)
        for name, answers in (("total", total), ("mean", mean), ("read", concept.predict(normalised(raw)))):
            table[name].append(float((answers.argmax(1) == right).double().mean()))
    return table


def prompted_scores(
    model: Any, data: Data, shown: Sequence[MultipleChoice], asked: Sequence[MultipleChoice]
) -> tuple[Tensor, Tensor]:
    """Sum and mean of the log-probabilities of each option's tokens, behind demonstrations as a prompt, `[n, M]`.

    All texts begin with the demonstrations, so the model reads these once and keeps its keys and values.

    Args:
        model: A language model of transformers.
        data: Its tokenizer reads the texts.
        shown: At least one demonstration, in the order of the prompt.
        asked: `n` questions with M options each.
    """
    front = "".join(f"{question.prompt}{question.options[question.right]}\n" for question in shown)
    texts = option_texts(data, asked, [front] * len(asked))
    decided = texts.targets >= 0
    common = int(((texts.inputs != texts.inputs[0]) | decided).any(0).int().argmax())
    # Newer versions of transformers have a new name for this argument.
    given = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache, sums = transformers_library().DynamicCache(), []
    with torch.no_grad():
        model(input_ids=texts.inputs[:1, :common], **{given: cache})
        for start in range(0, len(decided), BATCH):
            rows, targets = (of[start : start + BATCH, common:] for of in (texts.inputs, texts.targets))
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(rows))
            logits = model(input_ids=rows, **{given: past}).logits
            chances = logits.double().log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
            sums.append(torch.where(targets >= 0, chances, 0.0).sum(1))
    total = torch.cat(sums)
    mean = total / decided.sum(1)
    return total.view(len(asked), -1), mean.view(len(asked), -1)
