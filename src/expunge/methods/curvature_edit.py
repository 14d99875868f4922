"""Keep the parts of weights along which the loss curves for all data; drop the others (Merullo et al., 2510.24256).

    W <- U (C o M) V^T with C = U^T W V;  M keeps the components with the largest curvature, to a share rho of its sum

U and V are the eigenvectors of the layer's second moments of output gradients and of inputs (K-FAC), over retained
examples. What the model memorised of one example uses directions in which only that example's loss curves. The mean
loss hardly curves along them, so the method drops them. It measures nothing on the forget set, and it removes what else
was memorised, too.

Published code differs: it takes the labels of the data unless a flag asks for sampled ones, decomposes in single
precision without setting negative eigenvalues to 0, and picks components with a heap, where ties have another order.
The paper edits perceptron matrices only (gate and up of three late blocks, rho 0.6, 7 B weights). Small models need a
larger rho, about 0.9 to 0.97. So `search` looks for the smallest rho that keeps validation data within `tolerance`; it
uses no example to be forgotten. `numerics.curvature_mask` describes the rules and the soft shrinkage. `protect` is the
mixture of a public replication: factors of a second corpus are added with a weight, so that what it needs counts as
curved. For `ekfac`, which has measured its curvature in the basis of its own factors, K-FAC's curvature of the second
corpus along the same components is added.

Cost: one gradient per measured retain example, of which there are at most `examples`, and twice that for `ekfac`; none
with `factors` from a file or with `svd`. A search takes forward passes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, NonNegative
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import first_parameter, parameters_digest
from expunge.core.problem import Problem
from expunge.methods._search import Option, allocated, options, smallest
from expunge.numerics.curvature_mask import Components, Rule, Shrinkage, components, kept
from expunge.numerics.eigenbasis import curvature_in, eigenbases
from expunge.numerics.kronecker import KroneckerFactors, factors_from, load_factors
from expunge.numerics.matrices import set_weight_matrix, weight_matrix
from expunge.train.curvature import Counted, Labels, kronecker_factors
from expunge.train.evaluation import losses, measured, sample
from expunge.train.matrices import matrices, require_memory

Rho = Annotated[float, msgspec.Meta(gt=0, le=1)]
VALIDATION = 500
"""Most retain examples for validation; at most a fifth of them."""


@dataclass(frozen=True)
class CurvatureEdit(Method):
    """Curvature-based weight edit."""

    measures: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("factors", "protect")
    cite: ClassVar[tuple[str, ...]] = ("merullo2025spectrum", "george2018ekfac")
    paper: ClassVar[str] = "Spectrum of loss curvature, 2025"
    effort: ClassVar[str] = "R (untargeted)"

    layers: list[str] = field(default_factory=lambda: ["**"])
    """Paths of the layers to edit, or patterns: `*` matches within one step of a path, `**` any number of steps. Layers
    that have no trainable matrix of their own are left out."""
    rule: Rule = "kfac"
    """Scores of components: `kfac`, `ekfac`, `saliency`, `inputs_only`; or a baseline, `svd` or `random_rotation`."""
    rho: Rho = 0.95
    """Share of the sum of scores to keep, in each layer; not used in a search."""
    shrinkage: Shrinkage = "hard"
    """`hard` keeps or drops a component; `soft` shrinks each by its score, to the same kept share."""
    search: Literal["no", "perplexity", "utility"] = "no"
    """What must stay within `tolerance` on the validation data while the smallest `rho` is looked for: the perplexity,
    or the objective's utility."""
    tolerance: NonNegative = 0.2
    """Largest rise of the perplexity as a share of it, or largest loss of utility in its unit; only for a search."""
    per_layer: bool = False
    """Whether a search chooses a `rho` for each layer: as much of the weights goes as the tolerance allows, and a layer
    that costs more than it gives stays as it is."""
    validation: Literal["retain", "holdout"] = "retain"
    """Data of a search: retain examples that the factors do not use, or the problem's holdout. A model that fits its
    training data perfectly needs a holdout."""
    examples: Count = 2000
    """Most retain examples to measure factors on, drawn at random."""
    labels: Labels = "sampled"
    """Labels of the gradients: `sampled` from the model's prediction, or `gold`, those of the data."""
    counted: Counted = "decided"
    """Positions of sequences that count: `decided` (with a label), `all`, or the `first` one, such as a class token."""
    batch_size: Count = 32
    """Examples at a time."""
    factors: str = ""
    """File of factors of this very model, as `KroneckerFactors.save` writes them; by default they are measured."""
    protect: str = ""
    """File of factors on data whose skills must stay; by default none."""
    protect_weight: NonNegative = 0.5
    """Weight of these factors; the measured ones have weight 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in self.paths if getattr(self, name)]
        if self.per_layer and self.search == "no":
            raise SpecError(
                "there is no search", where="per_layer", allowed="search = 'perplexity' or 'utility' with it"
            )
        if given and self.rule == "svd":
            raise SpecError("the rule 'svd' uses no factors", where=given[0], remedy=f"leave out {given[0]!r}")

    @property
    def required(self) -> frozenset[str]:
        """Decisions, to sample labels or for the perplexity."""
        sampling = self._measuring and self.labels == "sampled"
        return self.needs | ({"decisions"} if sampling or self.search == "perplexity" else set())

    @property
    def _measuring(self) -> bool:
        return not self.factors and self.rule != "svd"

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One or two per example of the factors."""
        return self._passes * min(self.examples, retain - _held_out(retain)) if self._measuring else 0.0

    @property
    def _passes(self) -> int:
        return 2 if self.rule == "ekfac" else 1

    def check(self, problem: Problem) -> None:
        """Refuse a search on a holdout that the problem does not have.

        Raises:
            SpecError: The holdout is empty.
        """
        if self.search != "no" and self.validation == "holdout" and not len(problem.holdout):
            raise SpecError("the problem has no holdout", where="validation", allowed="retain")

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without layers to edit, or one whose layers do not fit into memory while they are edited.

        Raises:
            SpecError: A pattern matches nothing, the weights are on `meta`, or memory does not suffice.
            MissingError: No layer that matches can be edited.
        """
        require_memory(matrices(model, self.layers), together=self.search != "no")

    def measuring(self) -> Mapping[str, Any]:
        """What the factors depend on: not the rule, unless it is `ekfac`, and not `rho`."""
        if not self._measuring:
            return {"part": "CurvatureEdit", "version": self.version, "measured": False}
        names = ("layers", "examples", "labels", "counted", "batch_size")
        settings = {name: getattr(self, name) for name in names}
        return {"part": "CurvatureEdit", "version": self.version, "settings": settings, "passes": self._passes}

    def measure(self, model: nn.Module, job: Job) -> Mapping[str, Tensor]:
        """Kronecker factors on retain examples; empty if they come from a file, or if the budget allows no example."""
        if not self._measuring:
            return {}
        ids = _for_factors(job.problem, self.examples)
        if job.meter.limit is not None:
            ids = ids[: max(job.meter.limit - job.meter.gradients, 0) // self._passes]
        if not len(ids):
            return {}
        return kronecker_factors(
            model,
            job.problem,
            ids,
            matrices(model, self.layers),
            labels=self.labels,
            counted=self.counted,
            eigenvalues="positions" if self.rule == "ekfac" else None,
            batch_size=self.batch_size,
            seed=job.seed,
            meter=job.meter,
        ).tensors()

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Edit each layer; with a search, at the smallest `rho` within the tolerance."""
        layers = matrices(student, self.layers)
        if self._measuring and not job.statistics:
            return student
        # A search keeps all layers' components, and otherwise one layer is worked on at a time.
        require_memory(layers, together=self.search != "no")
        parts = self._components(student, layers, job)
        if self.search == "no":
            for path, part in parts:
                _remove(layers[path], weight_matrix(layers[path]).double(), part, self.rho, self.shrinkage)
            return student
        self._searched(student, layers, dict(parts), job.problem)
        return student

    def _searched(
        self, student: nn.Module, layers: Mapping[str, nn.Module], parts: Mapping[str, Components], problem: Problem
    ) -> None:
        """Edit at the smallest rho within the tolerance."""
        before = {path: weight_matrix(layer).double().clone() for path, layer in layers.items()}
        damage, allowed = self._judge(student, problem)

        def edit(rhos: Mapping[str, float]) -> None:
            for path, rho in rhos.items():
                _remove(layers[path], before[path], parts[path], rho, self.shrinkage)

        def within(rhos: Mapping[str, float]) -> bool:
            edit(rhos)
            return damage() <= allowed

        def alone(path: str) -> list[Option]:
            def tried(rho: float) -> tuple[float, float]:
                edit({path: rho})
                removed = before[path] - weight_matrix(layers[path]).double()
                return float(removed.square().sum() / before[path].square().sum()), damage() - start

            start = damage()
            found = options(tried, allowed - start)
            edit({path: 1.0})
            return found

        if self.per_layer:
            edit(allocated({path: alone(path) for path in layers}, within))
        else:
            edit(dict.fromkeys(layers, smallest(lambda rho: within(dict.fromkeys(layers, rho)))))

    def _components(
        self, student: nn.Module, layers: Mapping[str, nn.Module], job: Job
    ) -> Iterator[tuple[str, Components]]:
        draws = job.generator("rotation")
        if self.rule == "svd":
            yield from ((p, components("svd", weight_matrix(m), None, None, draws)) for p, m in layers.items())
            return
        factors, protected = self._factors(student, layers, job.statistics)
        if protected is not None and self.rule != "ekfac":
            factors, protected = factors.merged(protected, self.protect_weight), None
        for path, basis in eigenbases(factors, layers):
            measured = factors.eigenvalues.get(path)
            if protected is not None and measured is not None:
                # EK-FAC's basis stays that in which it was measured.
                others = curvature_in(basis, protected.layers[path])
                measured = measured.double().lerp(others, self.protect_weight / (1 + self.protect_weight))
            yield path, components(self.rule, weight_matrix(layers[path]), basis, measured, draws)

    def _factors(
        self, student: nn.Module, layers: Mapping[str, nn.Module], statistics: Mapping[str, Tensor]
    ) -> tuple[KroneckerFactors, KroneckerFactors | None]:
        """The measured factors, and those of data to protect, on the student's device."""
        digest, device = parameters_digest(student), first_parameter(student).device
        factors = load_factors(self.factors) if self.factors else factors_from(statistics, "statistics")
        factors.require(layers, digest, self.factors or "statistics")
        if not self.protect:
            return factors.to(device), None
        protected = load_factors(self.protect)
        protected.require(layers, digest, self.protect)
        return factors.to(device), protected.to(device)

    def _judge(self, student: nn.Module, problem: Problem) -> tuple[Callable[[], float], float]:
        """The damage of the student, as it is when asked, and the largest that is within the tolerance."""
        ids = problem.holdout if self.validation == "holdout" else _for_validation(problem)
        metric = next((m for m in problem.objective.metrics if m.utility), None)

        def damage() -> float:
            if self.search == "perplexity":
                return float(np.mean(losses(student, problem, ids)))
            assert metric is not None
            return -metric.sign * float(np.mean(measured(student, problem, ids)[metric.name]))

        allowed = damage() + (math.log1p(self.tolerance) if self.search == "perplexity" else self.tolerance)
        # A mean over other batches may differ by rounding.
        return damage, allowed + 1e-9


def _remove(layer: nn.Module, weight: Tensor, part: Components, rho: float, shrinkage: Shrinkage) -> None:
    """Write the edited weight. What is kept keeps its bits, up to rounding of the difference."""
    set_weight_matrix(layer, weight - part.removed(kept(part.scores, rho, shrinkage)))


def _held_out(retain: int) -> int:
    return min(retain // 5, VALIDATION)


def _for_validation(problem: Problem) -> Tensor:
    """Retain examples that no factors use; the same for every model and seed."""
    # With a tiny retain set there is none to spare.
    return sample(problem.retain, max(_held_out(len(problem.retain)), 1), "curvature validation")


def _for_factors(problem: Problem, count: int) -> Tensor:
    rest = problem.retain[~torch.isin(problem.retain, _for_validation(problem))]
    return sample(rest if len(rest) else problem.retain, count, "curvature factors")
