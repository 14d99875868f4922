"""What an in-context learner sees of a model: demonstrations of what is forgotten, and questions to answer.

Of a class, a demonstration is one held-out example of each label, and the options are labels. Of a person or another
concept in texts, it is one question about others of the forget set with its right answer, and the options are answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, NonNegative
from expunge.core.choices import chosen_among
from expunge.core.contracts import Audit
from expunge.core.decisions import Decisions
from expunge.core.features import Features, FeatureSite, flat, last_hidden, require_layers
from expunge.core.generators import generator_of
from expunge.core.modules import evaluating
from expunge.core.problem import Problem
from expunge.numerics.concept_regression import Normalisation, fit_concept
from expunge.numerics.demonstrations import greedy
from expunge.numerics.label_regression import Whitening, fit_labels
from expunge.train.evaluation import sample
from expunge.train.loop import in_order
from expunge.train.option_embeddings import embed_options

WHERE = "audit.in_context"
TIE = 1e-9
"""Predictions that differ by less than this are equal."""
SHOWN = "candidates"
"""Name of the candidates among splits: an attacker knows their answers, and can choose by them."""
FEWEST = 8
"""Fewest directions that are read by default."""
COVERED = 1.0
"""Penalty of the greedy choice."""
CANDIDATES = 64
"""Most candidates of each label, and times the demonstrations of questions."""


@dataclass(frozen=True)
class ContextSettings(Audit):
    """The settings of the audit that contexts depend on."""

    layer: str = ""
    """Path of the module whose output is read; by default the last hidden layer, the input of the last weights."""
    demonstrations: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Numbers of demonstrations; of a class, for each label."""
    dimension: Count | None = None
    """Directions of the hidden layer that are read, those with the largest variance first; by default one fewer than
    options, but at least 8."""
    ridge: NonNegative = 1.0
    """Penalty of the readout."""
    queries: Count = 200
    """Most examples of each set that are scored, a fixed random part."""
    labels: Count = 10
    """Most labels to choose from, the forgotten ones first; the others are a fixed random part."""


Predicted = dict[str, Tensor]
"""By split, a probability for each option, `[n, M]`; the values may be negative."""


class ContextSets(NamedTuple):
    """Ids by use; they do not depend on the model."""

    candidates: list[Tensor]
    """Examples to demonstrate with: one list for each option label, or a single one."""
    queries: dict[str, Tensor]
    """Examples to answer, by split: `forget`, `test`, and `holdout` if there is one."""
    labels: Tensor
    """The labels that are options; empty if examples bring their own options."""


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


def sets_of(problem: Problem, part: ContextSettings) -> ContextSets:
    """Candidates and queries of a problem.

    Raises:
        SpecError: The forget set is no class, concept or person, or has fewer candidates than demonstrations.
    """
    sets = _class_sets(problem, part) if problem.data.has_classes else _choice_sets(problem, part)
    fewest, most = min(len(ids) for ids in sets.candidates), max(part.demonstrations)
    if fewest < most:
        usable = [n for n in part.demonstrations if n <= fewest]
        raise SpecError(
            f"{most} demonstrations are asked for, and there are {fewest} held-out examples to take them from",
            where=f"{WHERE}.demonstrations",
            allowed=f"at most {fewest}",
            remedy=f"set demonstrations = {usable or [fewest]}, or forget a larger set",
        )
    return sets


def _class_sets(problem: Problem, part: ContextSettings) -> ContextSets:
    targets = problem.data.targets
    forgotten = targets[problem.forget].unique()
    shared = forgotten[torch.isin(forgotten, targets[problem.retain])]
    if len(shared):
        name = problem.data.labels[int(shared[0])]
        raise _no_concept(f"label {name} is in the retain set, too")
    kept = problem.reference_train
    kept = kept[~torch.isin(problem.data.group_of(kept), problem.data.group_of(problem.unexposed))]
    others = targets[kept].unique()
    count = max(part.labels - len(forgotten), 1)
    labels = torch.cat([forgotten, sample(others, count, "in_context labels")]).sort().values
    candidates = [
        sample(pool[targets[pool] == label], CANDIDATES, "in_context")
        for label in labels
        for pool in [problem.exposed if label in forgotten else kept]
    ]
    queries = {"forget": problem.unexposed, "holdout": problem.holdout, "test": problem.test}
    own = {split: ids[torch.isin(targets[ids], labels)] for split, ids in queries.items()}
    return ContextSets(candidates, _sampled(own, part.queries), labels)


def _choice_sets(problem: Problem, part: ContextSettings) -> ContextSets:
    data = problem.data
    if data.choices is None or data.tokenizer is None:
        raise SpecError(
            "its examples have no labels, and no answers to choose from",
            where=WHERE,
            allowed="data with classes, or texts of multiple choice, such as people and factbook",
            remedy="leave the audit out",
        )
    groups = data.group_of(problem.forget)
    if data.groups is None or len(groups.unique()) == len(groups):
        raise _no_concept("each of its texts is a group of its own")
    if torch.isin(groups, data.group_of(problem.retain)).any():
        raise _no_concept("one of its groups is in the retain set, too")
    choices = data.choices

    def asked(ids: Tensor) -> Tensor:
        return ids[torch.tensor([choices[i] is not None for i in ids.tolist()], dtype=torch.bool)]

    queries = {"forget": problem.unexposed, "holdout": problem.holdout, "test": problem.test}
    candidates = sample(asked(problem.exposed), CANDIDATES * max(part.demonstrations), "in_context")
    own = _sampled({split: asked(ids) for split, ids in queries.items()}, part.queries)
    if "forget" not in own or "test" not in own:
        raise _no_concept("no text to forget, or no test text, has answers to choose from")
    return ContextSets([candidates], own, torch.empty(0, dtype=torch.int64))


def _sampled(queries: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    return {split: sample(ids, most, f"in_context {split}") for split, ids in queries.items() if len(ids)}


def _no_concept(finding: str) -> SpecError:
    return SpecError(
        f"the forget set is no class, concept or person: {finding}",
        where=WHERE,
        allowed="a task such as whole_class or people; on single examples the audit would measure their class",
        remedy="leave the audit out",
    )


def context_of(model: nn.Module, problem: Problem, part: ContextSettings) -> Context:
    """Embed the candidates and the queries of a problem by a model.

    Raises:
        SpecError: As `sets_of`, or there is no such layer.
    """
    sets = sets_of(problem, part)
    site = (
        require_layers(model, [part.layer], f"{WHERE}.layer")[0] if part.layer else last_hidden(model, problem, WHERE)
    )
    return _labels(model, problem, part, sets, site) if len(sets.labels) else _choices(model, problem, part, sets, site)


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
) -> ChoiceContext:
    questions = {split: chosen_among(problem.data, ids) for split, ids in sets.queries.items()}
    shown = chosen_among(problem.data, sets.candidates[0])
    right = {split: torch.tensor([q.right for q in asked]) for split, asked in {**questions, SHOWN: shown}.items()}
    raw = {split: embed_options(model, problem, asked, site) for split, asked in questions.items()}
    pool = embed_options(model, problem, shown, site)
    options = pool.shape[1]
    if not all(bool(rows.isfinite().all()) for rows in (pool, *raw.values())) or not bool((pool != pool[:, :1]).any()):
        return ChoiceContext(sets, right, options, None, {}, part.ridge)
    normalised = Normalisation.fit(pool, part.dimension or max(options - 1, FEWEST))
    queries = {split: normalised(rows) for split, rows in {**raw, SHOWN: pool}.items()}
    return ChoiceContext(sets, right, options, queries[SHOWN], queries, part.ridge)


def correct(predicted: Tensor, right: Tensor) -> np.ndarray:
    """Whether each query is answered right, `[q]`; options that tie share the answer, so that chance is 1 / M."""
    return answered(predicted)[torch.arange(len(right)), right].numpy()


def answered(predicted: Tensor) -> Tensor:
    """The answer to each query, `[q, M]`: 1 for the most likely option, shared by those that tie."""
    best = (predicted >= predicted.max(1, keepdim=True).values - TIE).double()
    return best / best.sum(1, keepdim=True)
