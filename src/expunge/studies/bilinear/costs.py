"""What removals cost and how soon they are undone, beside gradient methods on the same networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from expunge.base.seeds import derive
from expunge.studies.bilinear import adverse, modular, operation, setup, structure
from expunge.studies.bilinear.operation import doublings
from expunge.studies.bilinear.setup import FORGOTTEN, LearningTask, Network
from expunge.studies.bilinear.structure import METHODS
from expunge.study.read import array, spearman

RELEARNED, EVERY = 0.1, 5
"""Error at which a control counts as relearned, and how often it is measured."""
OPERANDS = 13
"""Modulus of the two operations."""
ARCHITECTURE = "{} x 1"
"""The networks with the usual initial weights."""


def structure_claims(seed: int, task: LearningTask, steps: int, without: nn.Module) -> dict[str, Any]:
    """Whether structure ranks the costs, and how soon gradient methods are undone.

    Args:
        seed: Of the study.
        task: The rotations SO(3).
        steps: Training steps of each network.
        without: The two-sided bilinear network without the control, removed in closed form.
    """
    torch.manual_seed(derive(seed, "structure"))
    generator = torch.Generator().manual_seed(derive(seed, "structure"))
    nets: dict[str, Any] = structure.networks(task, steps, generator)
    forgetting = max(steps // 4, 1)
    collateral: dict[str, list[float]] = {method: [] for method in METHODS}
    again: dict[str, dict[str, int]] = {method: {} for method in METHODS}
    for name, net in nets.items():
        before = setup.retained(setup.errors_by_control(net, task, _seeded()))
        for method in METHODS:
            student = structure.unlearned(net, task, method, forgetting, generator)
            errors = setup.errors_by_control(student, task, _seeded())
            collateral[method].append(setup.retained(errors) - before)
            if name in {ARCHITECTURE.format(n) for n in setup.NETWORKS}:
                again[method][net.name] = _relearn(student, task, steps, generator)
    mixing = [structure.mixing_index(net, task, _seeded()) for net in nets.values()]
    rank = [structure.effective_rank(net, task, _seeded()) for net in nets.values()]
    horizons = [structure.horizon(net, task, _seeded()) for net in nets.values()]
    costs: dict[str, Sequence[float]] = {**collateral, "short horizon": [-h for h in horizons]}
    fresh = {n: _relearn(_fresh(n, task), task, steps, generator) for n in setup.NETWORKS}
    closed = _relearn(without, task, steps, generator)
    zeroed = {n: structure.input_zeroed(nets[ARCHITECTURE.format(n)]) for n in setup.NETWORKS}
    known = {n: setup.errors_by_control(net, task, _seeded())[FORGOTTEN] for n, net in zeroed.items()}
    steps_of = {method: {n: doublings(again[method][n], fresh[n]) for n in setup.NETWORKS} for method in METHODS}
    return {
        **array("mixing_ranks", {name: spearman(mixing, values) for name, values in costs.items()}),
        **array("effective_rank_ranks", {name: spearman(rank, values) for name, values in costs.items()}),
        **array("gradients_relearn", {m: sum(of.values()) / len(of) for m, of in steps_of.items()}),
        **array("closed_form_lasts_longer", {m: doublings(closed, again[m]["bilinear"]) for m in METHODS}),
        **array("zeroed_input_still_knows", {n: 0.9 - known[n] for n in setup.RIVALS}),
        "nets": list(nets),
        "structure": {"mixing": mixing, "effective rank": rank, "horizon": horizons, **collateral},
        "steps to relearn": {**again, "fresh": fresh, "closed form": closed},
        "input zeroed": known,
    }


def removal_claims(seed: int, sums: Network, task: LearningTask, p: int, steps: int) -> dict[str, Any]:
    """An operation removed; how soon a residue, a frequency and an operation come back; correlated inputs and blocks.

    Args:
        seed: Of the study.
        sums: The bilinear network of modular addition.
        task: The rotations SO(3), for stacked blocks.
        p: The modulus of `sums`.
        steps: Training steps, and the most of relearning.
    """
    torch.manual_seed(derive(seed, "removals"))
    generator = torch.Generator().manual_seed(derive(seed, "removals"))
    found = _operation(steps)
    again = modular.relearned(sums, p, steps) | found.pop("again")
    inputs = adverse.correlated_collateral(generator)
    stacked = adverse.stacked(task, steps, generator)
    pairs = {"operation": found.pop("collateral"), **inputs}
    return found | {
        **array("other_removals_predicted", {name: abs(m - predicted) for name, (predicted, m) in pairs.items()}),
        "oblique_costs_less": math.log10(inputs["orthogonal"][1] / inputs["oblique"][1]),
        **array(
            "blocks_do_not_compose",
            {
                "still known": 0.9 - stacked["input of the last"],
                "sum of changes": abs(stacked["predicted"] / stacked["measured"] - 1) - 0.1,
            },
        ),
        **array("features_below_relearn", again),
        "other collateral": {name: list(pair) for name, pair in pairs.items()},
        "stacked": stacked,
    }


def _operation(steps: int) -> dict[str, Any]:
    """Products removed from networks of sums and products: in closed form, and by gradients."""
    p = OPERANDS
    sums, products = operation.tables(p).values()
    nets = {name: operation.network(name, p) for name in operation.NAMES}
    for net in nets.values():
        operation.fit(net, p, steps)
    without = operation.removed(nets["bilinear"], p)
    before = {name: operation.accuracy(net, sums) for name, net in nets.items()}
    tuned = {
        f"{name}, {method}": operation.forgotten(net, p, max(steps // 5, 1), retained=method == "with retained")
        for name, net in nets.items()
        for method in METHODS[:2]
    }
    lost = {name: before[name.split(",")[0]] - operation.accuracy(net, sums) for name, net in tuned.items()}
    left = {
        # By the size of the logits, because the answers of zero logits are those of rounding.
        "products": operation.size(without, products) / operation.size(nets["bilinear"], products) / 1e-6,
        "sums": (before["bilinear"] - operation.accuracy(without, sums)) / 1e-3,
    }
    fresh = operation.fit(operation.network("bilinear", p), p, steps, until_known=True)
    collateral = operation.collateral(nets["bilinear"], without, p)
    again = {"operation": operation.fit(without.float(), p, steps, until_known=True)}
    again |= {name: operation.fit(net, p, steps, until_known=True) for name, net in tuned.items()}
    return {
        **array("operation_removed", left),
        **array("gradients_damage_operations", {n: lost[f"{n}, forget only"] for n in operation.NAMES}),
        "collateral": collateral,
        "again": {"operation": doublings(again["operation"], fresh)},
        "operation": {"before": before, "lost": lost, "steps to relearn": {**again, "fresh": fresh}},
    }


def _fresh(name: str, task: LearningTask) -> Network:
    controls, width, _ = task.operators.shape
    return Network(name, controls, width, width, task.size)


def _relearn(net: Any, task: LearningTask, most: int, generator: torch.Generator) -> int:
    return structure.steps_to_learn(net, task, generator, below=RELEARNED, most=most, every=EVERY)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
