"""Which layers hold what was memorised, what the curvature edit would take out of which examples, and what it detects.

For a layer's input a, the edit of `curvature_edit` by the rule K-FAC removes a share |(W - W_edit) a| / |W a| of the
response. The mean over layers is an example's share. It needs no label of what was memorised, so the same number is a
detector of memorised training examples. Its area under the ROC curve, forget against retain examples, stands beside
those of the loss and, for texts, of Min-K %++ and zlib (`train/membership_scores.py`): 0.5 tells nothing. Note that a
forget set need not be what was memorised.

Bands are the paper's (2510.24256, section 4): the activation of a layer's input directions, in the order of their
curvature, by forget examples over that by retain examples. In the paper the ratio falls from the lowest half to the top
tenth, in late layers.

A set whose share is large loses much by the edit. `sets` names a file of further sets, such as the examples of single
tasks: a JSON object of name and list of ids. Classifiers show each label of the unseen examples.

Cost: one gradient per measured retain example, of which there are at most `examples`, and forward passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.base.reading import read_given
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.core.data import check_ids
from expunge.core.objective import DECISIONS, TOKENS
from expunge.core.problem import Problem
from expunge.diagnostics._sample import about
from expunge.evidence.estimate import Estimate, over_examples
from expunge.evidence.intervals import Floats
from expunge.numerics.activation import BANDS, band_maps
from expunge.numerics.curvature_mask import components, kept
from expunge.numerics.eigenbasis import Eigenbasis, eigenbases
from expunge.numerics.matrices import weight_matrix
from expunge.train.curvature import activations, kronecker_factors
from expunge.train.evaluation import losses, sample
from expunge.train.matrices import matrices, require_memory
from expunge.train.membership_scores import Score, membership_scores, ranks

FORGET, RETAIN, UNSEEN = "forget set", "retain set", "unseen examples"
AREA = "area under the ROC curve, forget against retain, by {score}"
RATIO = "forget over retain, response removed in {layer}"
BAND = "forget over retain, activation of the {band} of {layer}"
RANK = "effective rank of inputs of {layer}"
TASK = "response removed, {name}"
MOST_LABELS = 12
"""Labels that are shown one by one, if there are not more."""
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]


@dataclass(frozen=True)
class LowCurvature(Diagnostic):
    """What examples put into directions of low curvature, which the curvature edit would remove."""

    paths: ClassVar[tuple[str, ...]] = ("sets",)
    cite: ClassVar[str] = "merullo2025spectrum"

    layers: list[str] = field(default_factory=lambda: ["**"])
    """Paths of the layers, or patterns: `*` matches within one step of a path, `**` any number of steps."""
    most: Count = 4
    """Layers to look at, spread evenly over those that match."""
    rho: Share = 0.95
    """Share of the curvature that the edit keeps."""
    examples: Count = 200
    """Most examples of each set, and for the factors."""
    sets: str = ""
    """JSON file of further sets to look at: an object of names and lists of ids; by default none."""

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        """Shares, ratios and areas, with 90 % intervals over the examples.

        Raises:
            SpecError: A pattern matches nothing, a set cannot be read, or memory does not suffice.
            MissingError: No layer that matches is one matrix.
            RunError: A loss is not finite.
        """
        problem = case.problem
        layers = _spread(matrices(case.original, self.layers), self.most)
        require_memory(layers, together=False)
        pool = sample(problem.retain, 2 * self.examples, "low curvature")
        # Where there are enough, examples of the factors are not judged by them.
        measured, judged = (pool[::2], pool[1::2]) if len(pool) > 1 else (pool, pool)
        with about(case):
            factors = kronecker_factors(
                case.original,
                problem,
                measured,
                layers,
                labels="sampled" if DECISIONS in problem.objective.provides else "gold",
                seed=derive(seed, "labels"),
            )
        bases = dict(eigenbases(factors))
        sets = self._sets(problem, judged)
        look = _Look(case.original, problem, layers, {p: self._maps(layers[p], b) for p, b in bases.items()})
        seen = {name: look(ids) for name, ids in sets.items()}
        shares = {name: _shares(of) for name, of in seen.items()}
        estimates = {TASK.format(name=n): over_examples(own, "share", "reference") for n, own in shares.items()}
        for score, (forget, retain) in self._scores(case, sets, shares).items():
            estimates[AREA.format(score=score)] = over_examples(ranks(forget, retain), "area", "reference")
        return estimates | _by_layer(seen, bases)

    def summary(self, estimates: Mapping[str, Estimate]) -> str:
        """What the edit would remove of each set, and what detects the forget set best."""
        prefix = TASK.format(name="")
        shares = {name.removeprefix(prefix): e.value for name, e in estimates.items() if name.startswith(prefix)}
        listed = ", ".join(f"{100 * share:.0f} % for {name}" for name, share in shares.items())
        areas = {n.rpartition("by ")[2]: e for n, e in estimates.items() if n.startswith(AREA.partition("{")[0])}
        own, rest = areas["response removed"], {n: e for n, e in areas.items() if n != "response removed"}
        text = f"curvature_edit with rho = {self.rho:g} would remove this share of layers' responses: {listed}. "
        best = max(rest, key=lambda name: rest[name].value)
        told = f"forget examples have the larger share in {100 * own.value:.0f} % of pairs with retain examples"
        if own.low > 0.5 and own.value >= rest[best].value:
            return f"{text}It points at the forget set: {told}, more than by the {best} ({rest[best].value:.2f})."
        if own.low > 0.5:
            return f"{text}It points at the forget set: {told}; the {best} does so better ({rest[best].value:.2f})."
        return f"{text}It does not point at the forget set ({told}): the edit would not spare the retain set."

    def _maps(self, layer: nn.Module, basis: Eigenbasis) -> dict[str, Tensor]:
        weight = weight_matrix(layer).double()
        part = components("kfac", weight, basis, None, torch.Generator())
        return {"removed": part.removed(kept(part.scores, self.rho)), "whole": weight} | band_maps(basis)

    def _sets(self, problem: Problem, judged: Tensor) -> dict[str, Tensor]:
        """Ids by the name of the set; labels come last."""
        sets = {FORGET: problem.forget, RETAIN: judged, UNSEEN: problem.test} | self._given(problem)
        if problem.data.has_classes and len(problem.data.labels) <= MOST_LABELS:
            targets = problem.data.targets[problem.test]
            by_label = {name: problem.test[targets == label] for label, name in enumerate(problem.data.labels)}
            sets |= {f"unseen {name}": ids for name, ids in by_label.items() if len(ids)}
        return {name: sample(ids, self.examples, f"low curvature {name}") for name, ids in sets.items()}

    def _given(self, problem: Problem) -> dict[str, Tensor]:
        if not self.sets:
            return {}
        where, allowed = "sets", "a JSON object of names and lists of ids"
        try:
            named = msgspec.json.decode(read_given(Path(self.sets), where=where), type=dict[str, list[int]])
        except (msgspec.DecodeError, json.JSONDecodeError) as error:
            raise SpecError(f"{self.sets}: {error}", where=where, allowed=allowed) from None
        ids = {name: torch.tensor(given, dtype=torch.int64) for name, given in named.items()}
        for name, own in ids.items():
            if name in (FORGET, RETAIN, UNSEEN) or not len(own):
                finding = f"{name!r} is the name of a set of its own" if len(own) else f"{name!r} is empty"
                raise SpecError(finding, where=where, allowed=allowed)
            check_ids(own, len(problem.data), where=f"{where} ({name})")
        return ids

    def _scores(
        self, case: Case, sets: Mapping[str, Tensor], shares: Mapping[str, Floats]
    ) -> dict[str, tuple[Floats, Floats]]:
        """Lower for a member, of forget and retain examples, by the score's name."""
        problem, model = case.problem, case.original
        scores = {"response removed": (-shares[FORGET], -shares[RETAIN])}
        scores["loss"] = (losses(model, problem, sets[FORGET]), losses(model, problem, sets[RETAIN]))
        if TOKENS in problem.objective.provides:
            others: list[Score] = [score for score in get_args(Score) if score not in ("loss", "min_k")]
            for score in others:
                scores[score] = tuple(membership_scores(model, problem, sets[n], score) for n in (FORGET, RETAIN))  # type: ignore[assignment]
        return {name: pair for name, pair in scores.items() if np.isfinite(np.concatenate(pair)).all()}


@dataclass(frozen=True)
class _Look:
    """Norms of every map for some examples."""

    model: nn.Module
    problem: Problem
    layers: Mapping[str, nn.Module]
    maps: Mapping[str, Mapping[str, Tensor]]

    def __call__(self, ids: Tensor) -> dict[str, dict[str, Tensor]]:
        return activations(self.model, self.problem, ids, self.layers, self.maps)


def _spread(layers: Mapping[str, nn.Module], most: int) -> dict[str, nn.Module]:
    """At most this many layers, the last one among them."""
    paths = list(layers)
    places = np.unique(np.linspace(len(paths) - 1, 0, min(most, len(paths))).round().astype(int))
    return {paths[place]: layers[paths[place]] for place in places.tolist()}


def _shares(seen: Mapping[str, Mapping[str, Tensor]]) -> Floats:
    shares: Floats = np.mean([_share_in(of) for of in seen.values()], axis=0)
    return shares


def _share_in(of: Mapping[str, Tensor]) -> Floats:
    """|(W - W_edit) a| / |W a| in one layer, `[n]`; 0 without any response."""
    share: Floats = (of["removed"] / of["whole"].clamp(min=1e-300)).numpy()
    return share


def _by_layer(
    seen: Mapping[str, Mapping[str, Mapping[str, Tensor]]], bases: Mapping[str, Eigenbasis]
) -> dict[str, Estimate]:
    """Ratios of forget to retain examples, and the spectrum, of each layer; bands of the last one."""
    estimates, last = dict[str, Estimate](), list(bases)[-1]
    forget, retain = seen[FORGET], seen[RETAIN]
    for path, basis in bases.items():
        name = path or "the model"
        _add(estimates, RATIO.format(layer=name), _share_in(forget[path]), _share_in(retain[path]))
        values = basis.input_values
        rank = float(values.sum() ** 2 / values.square().sum().clamp(min=1e-300))
        estimates[RANK.format(layer=name)] = Estimate(rank, np.nan, np.nan, len(values), "directions", "reference")
    for band in BANDS:
        if band in forget[last]:
            named = BAND.format(band=band, layer=last or "the model")
            _add(estimates, named, forget[last][band].numpy(), retain[last][band].numpy())
    return estimates


def _add(estimates: dict[str, Estimate], name: str, ours: Floats, theirs: Floats) -> None:
    """A ratio of means, if the second one is not 0; the interval is over the first one's examples."""
    if theirs.mean() > 0:
        estimates[name] = over_examples(ours / theirs.mean(), "ratio", "reference")
