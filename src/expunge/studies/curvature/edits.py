"""Edits of one model by one rule at any strength, the search for the strongest one that is allowed, and their baseline.

All rules edit the same matrices. BalancedSubnet has no strength to search for: several settings are tried, and of those
within the allowed price the one counts that forgets best what it was trained to forget.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.methods.balanced_subnet import BalancedSubnet
from expunge.methods.localized_pruning import LocalizedPruning, PruningRule
from expunge.numerics.curvature_mask import Rule, components, kept
from expunge.numerics.eigenbasis import eigenbases
from expunge.numerics.kronecker import KroneckerFactors
from expunge.numerics.matrices import set_weight_matrix, weight_matrix

RULES: tuple[Rule, ...] = ("kfac", "inputs_only", "ekfac", "saliency", "svd", "random_rotation")
WEIGHTS = ("durable", "greedy")
"""Siblings of BalancedSubnet that prune weights; the others prune neurons."""
NEURONS = [{"share": share} for share in (0.02, 0.05, 0.1, 0.2)]
SIBLINGS: dict[PruningRule, list[dict[str, float]]] = {
    "durable": [{"share": share} for share in (0.001, 0.003, 0.01, 0.03)],
    "greedy": [{"steps_of_greedy": count, "batch_size": 24} for count in (30, 100, 300)],
    "activation": NEURONS,
    "slimming": [{**own, "sparsity": weight} for weight in (1000.0, 10.0) for own in NEURONS],
    "hard_concrete": [{**own, "sparsity": weight} for weight in (1000.0, 10.0) for own in NEURONS],
}
"""Settings of each sibling to choose from."""
GENTLEST, STRONGEST, HALVINGS = -4.0, -0.2, 9
"""Range of the decimal logarithm of 1 - rho, and steps of the search in it."""


class Editor:
    """A copy of a model whose matrices are edited by one rule, again and again from the original weights.

    Args:
        model: The model; it is copied.
        layers: Paths of the matrices.
        rule: The rule of the edit.
        factors: Factors of the model; `svd` needs none.
        seed: Of the random rotation.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], rule: Rule, factors: KroneckerFactors, seed: int
    ) -> None:
        self.model = copy.deepcopy(model)
        self.layers = {path: self.model.get_submodule(path) for path in layers}
        self.before = {path: weight_matrix(layer).double().clone() for path, layer in self.layers.items()}
        draws = generator_of(seed, "rotation")
        self.parts = {
            path: components(rule, self.before[path], basis, factors.eigenvalues.get(path), draws)
            for path, basis in eigenbases(factors, layers)
        }

    def at(self, rho: float) -> nn.Module:
        """The model, edited at this strength; the next call changes it again."""
        for path, matrix in self.removed(rho).items():
            set_weight_matrix(self.layers[path], self.before[path] - matrix)
        return self.model

    def removed(self, rho: float) -> dict[str, Tensor]:
        """What the edit takes out of each matrix."""
        return {path: part.removed(kept(part.scores, rho)) for path, part in self.parts.items()}

    def maps(self, rho: float) -> dict[str, dict[str, Tensor]]:
        """For `numerics.activation.removed_share`."""
        return {path: {"removed": part, "whole": self.before[path]} for path, part in self.removed(rho).items()}


def strongest(within: Callable[[float], bool], gentlest: float = GENTLEST) -> float:
    """The smallest rho that is allowed, by halving the logarithm of 1 - rho; 1, no edit, if not even the gentlest is.

    Args:
        within: Whether a rho is allowed; edits that are stronger than a forbidden one are taken to be forbidden too.
        gentlest: Decimal logarithm of 1 - rho to begin with.
    """
    low, high = gentlest, STRONGEST
    if not within(1 - 10**low):
        return 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if within(1 - 10**middle) else (low, middle)
    return 1 - 10**low


def subnets(
    model: nn.Module, problem: Problem, layers: Sequence[str], settings: Sequence[Mapping[str, float]], seed: int
) -> list[nn.Module]:
    """BalancedSubnet's models, one for each of these settings."""
    return [
        BalancedSubnet(layers=list(layers), **own)(model, problem, None, seed).model  # type: ignore[arg-type]
        for own in settings
    ]


def siblings(
    model: nn.Module, problem: Problem, layers: Sequence[str], neurons: Sequence[str], tries: int, seed: int
) -> dict[PruningRule, list[nn.Module]]:
    """The models of each sibling of BalancedSubnet, one for each of its first settings.

    Args:
        model: The model.
        problem: What is to be forgotten.
        layers: Paths of the matrices whose weights may be pruned.
        neurons: Paths of those whose inputs are neurons.
        tries: Settings of each.
        seed: Of all draws.
    """
    return {
        rule: [
            LocalizedPruning(rule=rule, layers=list(layers if rule in WEIGHTS else neurons), **own)(  # type: ignore[arg-type]
                model, problem, None, seed
            ).model
            for own in settings[:tries]
        ]
        for rule, settings in SIBLINGS.items()
    }
