"""Choose demonstrations for a prompt from a user's own texts, by the bound of the risk of in-context learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.text_embeddings import Embed, embedder
from expunge.numerics.concept_regression import Normalisation, coverage, fit_concept
from expunge.numerics.demonstrations import greedy
from expunge.numerics.label_regression import Whitening

DIMENSION = 32
"""Most directions of the embeddings: with more, few demonstrations cover nothing."""
PENALTY = 0.1


@dataclass(frozen=True)
class Demonstrations:
    """Chosen texts. Their printed form is one line each."""

    order: list[int]
    """Places of the chosen texts among those given; the first k are the choice of k."""
    texts: list[str]
    """The chosen texts, in this order."""
    bounds: list[float]
    """Bound of the mean risk of the queries after each of them, with a small ridge; it never rises."""
    similarity: float
    """Largest eigenvalue of F(x) F_n^-1 over the queries, after all of them: close to 1 if they are well covered."""

    def __str__(self) -> str:
        rows = zip(self.order, self.bounds, self.texts, strict=True)
        return "\n".join(f"{place:>6}  bound {bound:.3g}  {text}" for place, bound, text in rows)


def select_demonstrations(
    model: Any,
    texts: Sequence[str],
    query: str | Sequence[str],
    *,
    count: int = 8,
    options: Sequence[str] = (),
    tokenizer: Any = None,
) -> Demonstrations:
    """Choose from your texts those that teach a model most about a query.

    Texts are embedded by the model and chosen greedily by the trace bound of concept regression (2509.20882): each next
    one lowers the bound of the queries' risk most. Answers are not needed, neither of the texts nor of the query.

    Args:
        model: What embeds texts: `"tfidf"`, which needs no model; `"minilm"`, a sentence encoder from a package; the
            folder of a Hugging Face model, or its name in the local cache; or a module that reads tokens `[b, t]`.
        texts: Texts to choose from.
        query: The text, or several, that the demonstrations are for.
        count: Number of texts to choose.
        options: Answers to choose from, the same for all texts. Text and answer are then embedded together, and only
            what depends on the answer counts. By default each text counts as it is.
        tokenizer: The tokenizer of a module: of transformers, or `data.tokenizer` of expunge.

    Returns:
        The chosen texts with their bounds.

    Raises:
        SpecError: There are fewer texts than `count`, a text is empty or no text, options occur twice, or all
            embeddings are the same.
        MissingError: A package or a model is not installed; the message has the command.
    """
    queries = [query] if isinstance(query, str) else query
    for name, given in (("texts", texts), ("query", queries), ("options", options)):
        _check_texts(name, given)
    if not 1 <= count <= len(texts):
        allowed = f"1 to {len(texts)}, the number of texts"
        raise SpecError(f"found {count}", where="count", allowed=allowed, remedy="give more texts, or ask for fewer")
    if len(options) == 1 or len(set(options)) < len(options):
        raise SpecError(f"found {list(options)}", where="options", allowed="two or more different answers, or none")
    embed = embedder(model, tokenizer, [f"{text} {o}" for text in texts for o in options] or list(texts))
    rows, wanted = (_with_options if options else _plain)(embed, texts, queries, options)
    order = greedy(rows, wanted, count)
    bounds = [float(_bound(rows[order[:size]], wanted).trace.mean()) for size in range(1, count + 1)]
    similarity = float(_bound(rows[order], wanted).similarity.max())
    return Demonstrations(order, [texts[place] for place in order], bounds, similarity)


def _check_texts(name: str, given: Any) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise SpecError(f"found a {type(given).__name__}", where=name, allowed="a list of texts")
    if not given and name != "options":
        raise SpecError("there is no text", where=name, allowed="at least one text")
    for place, text in enumerate(given):
        if not isinstance(text, str) or not text.strip():
            raise SpecError(f"found {text!r}", where=f"{name}[{place}]", allowed="a text with at least one word")


def _plain(embed: Embed, texts: Sequence[str], queries: Sequence[str], _: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Whitened embeddings `[n, 1, K]`: each text is a question with one row."""
    raw = embed(texts)
    whitening = Whitening.fit(raw, DIMENSION)
    return whitening(raw)[:, None], whitening(embed(queries))[:, None]


def _with_options(
    embed: Embed, texts: Sequence[str], queries: Sequence[str], options: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Normalised embeddings `[n, M, K]` of texts with each option."""
    raw, asked = (
        embed([f"{text} {option}" for text in given for option in options]).view(len(given), len(options), -1)
        for given in (texts, queries)
    )
    normalised = Normalisation.fit(raw, DIMENSION)
    return normalised(raw), normalised(asked)


def _bound(rows: Tensor, wanted: Tensor) -> Any:
    """Bounds for the queries; a single row counts as two, of which the other is its negative."""
    if rows.shape[1] == 1:
        rows, wanted = (torch.cat([part, -part], 1) for part in (rows, wanted))
    concept = fit_concept(rows, torch.zeros(len(rows), dtype=torch.int64))
    return coverage(concept, wanted, ridge=PENALTY)
