"""Which minima unlearning leaves, and how fast: linear stability of descent and ascent (2602.02986).

The theory is derived here for the paper's update, because the paper's theorems could not be read. The study compares it
with simulated chains on two planes, with a two-layer ReLU network trained on signal and noise, and, beyond the paper,
with real forget sets. Divergence of a linear model is neither forgetting nor deletion. So the question is whether its
rate *ranks* the steps and the outcomes of forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from expunge.base.part import Count
from expunge.base.seeds import derive
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Grid, Series
from expunge.studies.stability import grids, sets, snr
from expunge.studies.stability.roles import Kind, growth
from expunge.study.claims import read_claims
from expunge.study.read import array, spearman
from expunge.study.study import Preset, Study, Work

NINE_OF_TEN = 0.9
WAYS = ("signal", "noise")
"""What changes the ratio: the signal or the noise, with the other one constant."""


@dataclass(frozen=True)
class StabilityStudy(Study):
    """Predicted against simulated stability, signal-to-noise ratios, and real forget sets."""

    cite: ClassVar[str] = "chang2026resist"
    paper: ClassVar[str] = "Why Some Models Resist Unlearning, 2026"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset(
            (0,),
            {
                "across": 4,
                "up": 3,
                "chains": 20,
                "horizon": 60,
                "count": 15,
                "inputs": 50,
                "images": 200,
                "epochs": 5,
                "most": 100,
            },
        ),
        "cpu": Preset((0, 1, 2, 3, 4)),
        "long": Preset((0, 1, 2, 3, 4), {"across": 21, "up": 13, "chains": 400, "inputs": 1000, "images": 5000}),
        "paper": Preset((0,), lacks="CIFAR-10, a ResNet-18, and the paper's settings, which could not be read"),
    }

    across: Count = 11
    """Cells of a plane along one side."""
    up: Count = 8
    """Cells of a plane along the other side."""
    chains: Count = 100
    """Simulated chains per cell."""
    horizon: Count = 400
    """Largest number of steps of a chain."""
    count: Count = 60
    """Examples of signal and noise, a fifth of which is forgotten."""
    inputs: Count = 300
    """Entries of a patch."""
    images: Count = 2000
    """Training images of the real forget sets, a twentieth of which is forgotten."""
    epochs: Count = 25
    """Epochs of the training on images."""
    most: Count = 1000
    """Largest number of steps of unlearning."""

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Simulate, train on signal and noise, and unlearn real forget sets."""
        return self._planes(seed) | self._ratios(seed) | self._sets(seed)

    def _planes(self, seed: int) -> dict[str, Any]:
        cells = list(grids.planes(self.horizon, self.chains, self.across, self.up, derive(seed, "planes")))
        exact, mean = (float(np.mean([getattr(c, t) == c.stable for c in cells])) for t in ("exact", "mean"))
        values = array("agreement", {"exact, less 0.9": exact - NINE_OF_TEN, "exact, less mean": exact - mean})
        stays, leaves, may_stay = grids.dexter_map(self.horizon, 10, derive(seed, "dexter"))
        bounds = {"leaves": float((~stays)[leaves].float().mean()), "may stay": float(stays[may_stay].float().mean())}
        values |= array("dexter_bounds", bounds)
        kinds: tuple[Kind, ...] = ("low", "forget", "apart", "between")
        rates = {kind: growth(kind, self.horizon, derive(seed, "roles")) for kind in kinds}
        roles = {
            "within forget": rates["forget"] - rates["low"],
            "within retain": rates["forget"] - rates["apart"],
            "between": rates["apart"] - rates["between"],
        }
        values |= array("coherences_differ", roles)
        table = {
            "stable": stays.float().tolist(),
            "cells": [[c.plane, c.across, c.up, c.stable, c.exact] for c in cells],
        }
        return values | table | {"exact": exact, "mean": mean}

    def _ratios(self, seed: int) -> dict[str, Any]:
        scale = snr.Scale(self.count, self.count // 5, self.inputs)
        root = self.inputs**0.5
        seen = {
            way: [
                # The constant noise is 1 per entry; the constant signal has the length of the second ratio.
                snr.look(
                    root * (ratio if way == "signal" else snr.SNRS[1]),
                    1.0 if way == "signal" else snr.SNRS[1] / ratio,
                    scale,
                    torch.Generator().manual_seed(derive(seed, f"{way} {ratio}")),
                )
                for ratio in snr.SNRS
            ]
            for way in WAYS
        }
        values = array("coherence_rises", _changes({w: [network.coherence for network in s] for w, s in seen.items()}))
        logs = {
            rule: {w: [float(np.log(max(network.steps[rule], 1))) for network in s] for w, s in seen.items()}
            for rule in ("normalised", "fixed", "tuned")
        }
        values |= array("forgetting_slows", _changes(logs["normalised"]))
        values["fixed_step_hides_it"] = logs["fixed"]["signal"][-1] - logs["fixed"]["signal"][0]
        values |= array("tuned_step_slows", {way: log[-1] - log[0] for way, log in logs["tuned"].items()})
        damage = {w: [float(np.log(network.damage["normalised"])) for network in s] for w, s in seen.items()}
        values |= array("damage_rises", {way: log[-1] - log[0] for way, log in damage.items()})
        both = [network for way in WAYS for network in seen[way]]
        slow = [-network.rate for network in both]
        values["rate_foretells_steps"] = spearman(slow, [network.steps["normalised"] for network in both])
        return values | {"residuals": [network.residual for network in both], "logs": logs["normalised"]}

    def _sets(self, seed: int) -> dict[str, Any]:
        tasks = sets.tasks(self.images // 20, seed)
        seen = {
            n: sets.look(t, self.images, self.epochs, self.most, derive(seed, f"set {n}")) for n, t in tasks.items()
        }

        def rank(predicted: str, measured: str) -> float:
            pairs = [(result.predicted[predicted], result.measured[measured]) for result in seen.values()]
            return spearman(*zip(*pairs, strict=True))

        def gains(predicted: str) -> dict[str, float]:
            return {
                what: abs(rank(predicted, what)) - max(abs(rank(simple, what)) for simple in ("cosine", "loss"))
                for what in ("steps", "membership", "distance")
            }

        plans = [pair for result in seen.values() for pair in result.plans if min(pair) > 0]
        off = [
            abs(float(np.log2(measured / course))) for course, measured in plans if max(course, measured) < self.most
        ]
        values: dict[str, Any] = {
            "rate_ranks_sets": -rank("rate", "steps"),
            "course_ranks_sets": rank("course", "steps"),
        }
        values |= array("rate_beats_simple_measures", gains("rate"))
        values |= array("course_beats_simple_measures", gains("course"))
        values["course_within_factor"] = float(np.mean(off)) if off else float("nan")
        values |= _of_methods(list(seen.values()))
        values["damage_ranks_sets"] = rank("lost", "damage")
        steps, damage = zip(*(result.recommended for result in seen.values()), strict=True)
        values |= {"recommended_plan_forgets": float(np.mean(steps)), "recommended_plan_spares": float(np.mean(damage))}
        numbers = {n: [*result.predicted.values(), *result.measured.values()] for n, result in seen.items()}
        return values | {"sets": numbers, "plans": plans}

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """Steps against the ratio, the map of Dexter et al., and the numbers of the real forget sets."""
        ways = [
            Series(way, snr.SNRS, tuple(np.mean([values["logs"][way] for values in seeds.values()], axis=0)))
            for way in WAYS
        ]
        stays = np.mean([values["stable"] for values in seeds.values()], axis=0)
        map_ = Grid(
            "Share of seeds in which descent stays, construction of Dexter et al.",
            "batch size",
            "coherence",
            tuple(map(str, grids.DEXTER_BATCHES)),
            tuple(map(str, grids.DEXTER_COHERENCES)),
            tuple(tuple(map(float, row)) for row in stays),
        )
        first = next(iter(seeds.values()))["sets"]
        numbers = tuple(
            tuple(map(float, np.mean([values["sets"][name] for values in seeds.values()], axis=0))) for name in first
        )
        columns = ("rate", "course", "cosine", "loss", "lost", "steps", "membership", "distance", "damage")
        return [
            Chart("Forgetting at the normalised step", "signal-to-noise ratio", "log steps", tuple(ways), log_x=True),
            map_,
            Grid("Real forget sets: predicted and measured", "", "", columns, tuple(first), numbers),
        ]


def _of_methods(seen: Sequence[sets.ForgetSetResult]) -> dict[str, Any]:
    """Rank correlations over methods on one forget set, as means over the sets."""

    def rank(predicted: str, measured: str) -> float:
        pairs = [[(m[predicted], m[measured]) for m in result.methods.values()] for result in seen]
        return float(np.mean([spearman(*zip(*points, strict=True)) for points in pairs]))

    values = {"course_ranks_methods": rank("course", "steps"), "rate_ranks_methods": -rank("rate", "steps")}
    ends = {what: -rank("course", what) for what in ("membership", "distance")}
    return values | array("course_ranks_outcomes_of_methods", ends)


def _changes(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each value minus the one before, by way and ratio."""
    return {
        f"{way}, {after:g}": row[at + 1] - row[at]
        for way, row in values.items()
        for at, after in enumerate(snr.SNRS[1:])
    }
