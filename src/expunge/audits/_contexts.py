"""What an in-context learner sees of a model: demonstrations of what is forgotten, and questions to answer.

Of a class, a demonstration is one held-out example of each label, and the options are labels. Of a person or another
concept in texts, it is one question about others of the forget set with its right answer, and the options are answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from expunge.audits._context_sets import WHERE, ContextSets, ContextSettings, sets_of
from expunge.audits._preferences import PENALTY, preferences
from expunge.core.choices import chosen_among
from expunge.core.decisions import Decisions
from expunge.core.features import Features, FeatureSite, flat, last_hidden, require_layers
from expunge.core.generators import generator_of
from expunge.core.modules import evaluating
from expunge.core.problem import Problem
from expunge.numerics.concept_regression import Normalisation, fit_concept
from expunge.numerics.demonstrations import greedy
from expunge.numerics.label_regression import Whitening, fit_labels
from expunge.train.loop import in_order
from expunge.train.option_embeddings import embed_options, option_scores

NAME, OWN = "in_context", "in_context_own"
"""The metrics: what the hidden layer says, and what the model's own preferences among answers say."""
TIE = 1e-9
"""Predictions that differ by less than this are equal."""
SHOWN = "candidates"
"""Name of the candidates among splits: an attacker knows their answers, and can choose by them."""
FEWEST = 8
"""Fewest directions that are read by default."""
COVERED = 1.0
"""Penalty of the greedy choice."""


Predicted = dict[str, Tensor]
"""By split, a probability for each option, `[n, M]`; the values may be negative."""


@dataclass(frozen=True, eq=False)
class Context(ABC):
    """Embeddings of one model."""

    sets: ContextSets
    right: Mapping[str, Tensor]
    """The right option of each query, by split, and of all candidates in turn, under `SHOWN`."""
    options: int

    @abstractmethod
    def covering(self, most: int) -> list[Tensor]:
        """The order in which candidates cover the forget queries best, for each list of candidates."""

    @abstractmethod
    def predicted(self, rows: Sequence[Tensor]) -> Predicted:
        """What the readout says after these demonstrations, rows of each list of candidates."""

    def drawn(self, draw: int) -> list[Tensor]:
        """A random order of each list of candidates, the same for every model."""
        lists = self.sets.candidates
        return [
            torch.randperm(len(ids), generator=generator_of(0, "in_context", draw, place))
            for place, ids in enumerate(lists)
        ]

    def _uniform(self) -> Predicted:
        return {
            split: torch.full((len(right), self.options), 1 / self.options, dtype=torch.float64)
            for split, right in self.right.items()
        }


@dataclass(frozen=True, eq=False)
class LabelContext(Context):
    """Whitened features of classes; `None` for a model whose features say nothing."""

    features: Sequence[Tensor] | None
    """Of the candidates of each label, `[n, d]`."""
    queries: Mapping[str, Tensor]
    ridge: float

    def covering(self, most: int) -> list[Tensor]:
        if self.features is None:
            return self.drawn(0)
        # Labels as options share one matrix of features, so each question counts as a single row of the bound.
        wanted = self.queries["forget"][:, None]
        return [
            torch.tensor(greedy(rows[:, None], wanted, min(most, len(rows)), ridge=COVERED)) for rows in self.features
        ]

    def predicted(self, rows: Sequence[Tensor]) -> Predicted:
        if self.features is None:
            return self._uniform()
        shown = [features[own] for features, own in zip(self.features, rows, strict=True)]
        answers = torch.repeat_interleave(torch.arange(len(shown)), torch.tensor([len(own) for own in shown]))
        concept = fit_labels(torch.cat(shown), answers, self.options, ridge=self.ridge)
        return {split: concept.predict(features) for split, features in self.queries.items()}


@dataclass(frozen=True, eq=False)
class ChoiceContext(Context):
    """Embeddings of options, `[n, M, K]`; `None` for a model whose embeddings say nothing."""

    embeddings: Tensor | None
    queries: Mapping[str, Tensor]
    ridge: float

    def covering(self, most: int) -> list[Tensor]:
        if self.embeddings is None:
            return self.drawn(0)
        count = min(most, len(self.embeddings))
        return [torch.tensor(greedy(self.embeddings, self.queries["forget"], count, ridge=COVERED))]

    def predicted(self, rows: Sequence[Tensor]) -> Predicted:
        if self.embeddings is None:
            return self._uniform()
        concept = fit_concept(self.embeddings[rows[0]], self.right[SHOWN][rows[0]], ridge=self.ridge)
        return {split: concept.predict(embeddings) for split, embeddings in self.queries.items()}


def contexts_of(model: nn.Module, problem: Problem, part: ContextSettings) -> dict[str, Context]:
    """What is read of the candidates and the queries of a problem, by the metric that it gives.

    Of classes, the hidden layer: `in_context`. Of answers to choose from, the evidence in the hidden layer, and the
    model's own preferences among the answers: `in_context_own`.

    Raises:
        SpecError: As `sets_of`, or there is no such layer.
    """
    sets = sets_of(problem, part)
    site = (
        require_layers(model, [part.layer], f"{WHERE}.layer")[0] if part.layer else last_hidden(model, problem, WHERE)
    )
    if len(sets.labels):
        return {NAME: _labels(model, problem, part, sets, site)}
    return _choices(model, problem, part, sets, site)


def _labels(
    model: nn.Module, problem: Problem, part: ContextSettings, sets: ContextSets, site: FeatureSite
) -> LabelContext:
    place = {int(label): index for index, label in enumerate(sets.labels)}
    asked = {**sets.queries, SHOWN: torch.cat(sets.candidates)}
    right = {
        split: torch.tensor([place[label] for label in problem.data.targets[ids].tolist()])
        for split, ids in asked.items()
    }
    lists = [_features(model, problem, ids, site) for ids in (*sets.candidates, *sets.queries.values())]
    pool = torch.cat(lists[: len(sets.candidates)])
    if not all(bool(rows.isfinite().all()) for rows in lists) or not bool((pool != pool[0]).any()):
        return LabelContext(sets, right, len(place), None, {}, part.ridge)
    whitening = Whitening.fit(pool, part.dimension or max(len(place) - 1, FEWEST))
    rows = [whitening(features) for features in lists]
    shown = rows[: len(sets.candidates)]
    queries = {**dict(zip(sets.queries, rows[len(shown) :], strict=True)), SHOWN: torch.cat(shown)}
    return LabelContext(sets, right, len(place), shown, queries, part.ridge)


def _features(model: nn.Module, problem: Problem, ids: Tensor, site: FeatureSite) -> Tensor:
    read = Features(problem, [site], f"{WHERE}.layer")

    def rows(values: tuple[Decisions, list[Tensor]]) -> Tensor:
        return flat(values[1][0]).double().cpu()

    with evaluating(model), torch.no_grad():
        return torch.cat([rows(read(model, batch)) for batch in in_order(problem.data, ids)])


def _choices(
    model: nn.Module, problem: Problem, part: ContextSettings, sets: ContextSets, site: FeatureSite
) -> dict[str, Context]:
    asked = {**sets.queries, SHOWN: sets.candidates[0]}
    questions = {split: chosen_among(problem.data, ids) for split, ids in asked.items()}
    right = {split: torch.tensor([q.right for q in of]) for split, of in questions.items()}
    raw = {split: embed_options(model, problem, of, site) for split, of in questions.items()}
    own = {split: option_scores(model, problem, of) for split, of in questions.items()}
    options = raw[SHOWN].shape[1]

    def context(embeddings: dict[str, Tensor] | None, ridge: float) -> Context:
        pool = None if embeddings is None else embeddings[SHOWN]
        return ChoiceContext(sets, right, options, pool, embeddings or {}, ridge)

    evidence = context(_normalised(raw, part.dimension or max(options - 1, FEWEST)), part.ridge)
    return {NAME: evidence, OWN: context(preferences(own, SHOWN), PENALTY)}


def _normalised(raw: Mapping[str, Tensor], dimension: int) -> dict[str, Tensor] | None:
    pool = raw[SHOWN]
    if not all(bool(rows.isfinite().all()) for rows in raw.values()) or not bool((pool != pool[:, :1]).any()):
        return None
    normalised = Normalisation.fit(pool, dimension)
    return {split: normalised(rows) for split, rows in raw.items()}


def correct(predicted: Tensor, right: Tensor) -> np.ndarray:
    """Whether each query is answered right, `[q]`; options that tie share the answer, so that chance is 1 / M."""
    return answered(predicted)[torch.arange(len(right)), right].numpy()


def answered(predicted: Tensor) -> Tensor:
    """The answer to each query, `[q, M]`: 1 for the most likely option, shared by those that tie."""
    best = (predicted >= predicted.max(1, keepdim=True).values - TIE).double()
    return best / best.sum(1, keepdim=True)
