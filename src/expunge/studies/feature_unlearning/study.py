"""Features that long training loses: a derived model with two time scales, solved, simulated and monitored.

A two-layer network learns a direction fast; then its second layer moves slowly, and the network may lose the direction
again (`numerics.fading`). Everything is *derived*, consistent with the abstract of 2602.07378, whose equations and
numbers could not be read. The study tests the closed criterion, the exponents and the half-life against integration by
an implicit solver; the equations against SGD and against the exact gradient flow of finitely many units; and the
monitor for users' own training on a network with real images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from expunge.base.part import Count, Positive
from expunge.base.seeds import derive
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Series
from expunge.studies.feature_unlearning import setup
from expunge.studies.feature_unlearning.images import watched
from expunge.study.claims import read_claims
from expunge.study.read import array
from expunge.study.study import Preset, Study, Work

ALLOWED = (0.02, 0.06)
"""Errors of alignment and of scale that count as 1."""
END = 1e11
"""A time after which the slowest decay, t^-1/4 at epsilon 0.01, is below the tolerance of the phase table."""


@dataclass(frozen=True)
class FeatureUnlearningStudy(Study):
    """Phases, exponents and monitors of features that fade in long training."""

    cite: ClassVar[str] = "imai2026dichotomy"
    paper: ClassVar[str] = "Dichotomy of Feature Learning and Unlearning, 2026"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset(
            (0,), {"units": 60, "inputs": 40, "batch": 200, "horizon": 15.0, "flow": 10.0, "images": 600, "epochs": 60}
        ),
        "cpu": Preset((0, 1, 2, 3, 4)),
        "long": Preset((0, 1, 2, 3, 4), {"units": 400, "inputs": 100, "batch": 1500, "horizon": 200.0, "flow": 3000.0}),
        "paper": Preset((0,), lacks="the paper's networks and settings, which could not be read"),
    }

    units: Count = 160
    """Units of the networks trained by SGD."""
    inputs: Count = 80
    """Inputs of these networks."""
    batch: Count = 600
    """Fresh examples per step."""
    horizon: Positive = 150.0
    """Step size times steps, for SGD."""
    flow: Positive = 1000.0
    """Step size times steps, for the exact flow."""
    images: Count = 8000
    """Training images of the network on real images."""
    epochs: Count = 60
    """Epochs of the training on images."""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """The part that no seed changes: everything that follows from the equations alone."""
        table = {
            f"c2 {second:g}, a0 {scale:g}": abs(_end(second, scale) - setup.predicted_end(2 * second))
            for second in setup.STRENGTHS
            for scale in setup.SCALES
        }
        measured = array("phase_table", table) | array("exponents", _exponents()) | array("reversal", _reversal())
        measured |= array("half_life", _half_lives()) | array("floor", {"floor": _floor() + 1 / 3})
        return measured | array("slow_time", _collapse())

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Train by SGD and by exact flow, and compare both with the equations."""
        measured: dict[str, Any] = dict(basis)
        wide = setup.NetworkSetting(self.units, self.inputs, self.batch)
        ways = {second: self._sgd(second, wide, seed) for second in setup.STRENGTHS if second != 0}
        ratios = {f"c2 {second:g}": setup.errors(way, second, wide) for second, way in ways.items()}
        measured |= array("sgd_follows", _ratios(ratios))
        widths = {n: setup.NetworkSetting(n, self.inputs, self.batch) for n in (20, 40, 80)}
        narrow = {n: setup.errors(self._sgd(-0.5, setting, seed), -0.5, setting)[1] for n, setting in widths.items()}
        measured |= array("error_falls", {f"{n} units": error for n, error in narrow.items()})
        few = setup.NetworkSetting(40, self.inputs, 1)
        flow = setup.by_flow(-0.5, few, self.flow, self._generator(seed, "flow"))
        off = {name: setup.errors(flow, -0.5, few, corrected=name == "corrected")[1] for name in ("wide", "corrected")}
        measured |= array(
            "units_push_apart",
            {"infinite width, in tenths": 10 * off["wide"], "corrected, in hundredths": 100 * off["corrected"]},
        )
        soft = setup.NetworkSetting(
            self.units, self.inputs, self.batch, ratio=0.2, shape=setup.SOFTPLUS, series=setup.softplus_series()
        )
        ratios = {"softplus": setup.errors(self._sgd(-0.5, soft, seed), -0.5, soft)}
        measured |= array("real_activation", _ratios(ratios))
        alarms = {c: watched(c, self.images, self.epochs, derive(seed, f"images {c}")) for c in (-0.5, 1.0)}
        went_off = {c: float(alarm.fired is not None) for c, alarm in alarms.items()}
        measured["monitor_sees"] = went_off[-0.5] - went_off[1.0]
        measured |= {f"images {c:g}": alarm.record for c, alarm in alarms.items()}
        return measured | {f"way {c:g}": [way.alignment.tolist(), way.scale.tolist()] for c, way in ways.items()}

    def _sgd(self, second: float, setting: setup.NetworkSetting, seed: int) -> setup.Way:
        generator = self._generator(seed, f"sgd {second} {setting.units} {setting.ratio}")
        return setup.by_sgd(second, setting, self.horizon, generator)

    def _generator(self, seed: int, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(seed, what))

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """The phase plane with the path of SGD, and the monitor's measurements."""
        first, planes = next(iter(seeds.values())), []
        s = np.linspace(0.1, 1.0, 91)
        for second in (c for c in setup.STRENGTHS if f"way {c:g}" in first):
            scale = setup.model(second, 0.1).manifold(s)
            shown = (scale > 0) & (scale < 6)
            lines = (
                Series("at rest", tuple(s[shown]), tuple(scale[shown])),
                Series("SGD", *map(tuple, first[f"way {second:g}"])),
            )
            planes.append(Chart(f"Phase plane, kappa {2 * second:g}", "alignment s", "second-layer scale a", lines))
        seen = [
            Series(
                f"kappa {2 * c:g}", tuple(first[f"images {c:g}"]["step"]), tuple(first[f"images {c:g}"]["alignment"])
            )
            for c in (-0.5, 1.0)
        ]
        return [*planes, Chart("On real images", "step", "alignment", tuple(seen))]


def _ratios(errors: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Errors of alignment and scale, divided by the allowed errors."""
    return {
        f"{name}, {what}": error / allowed
        for name, pair in errors.items()
        for what, error, allowed in zip(("alignment", "scale"), pair, ALLOWED, strict=True)
    }


def _end(second: float, scale: float) -> float:
    solution = setup.model(second, 0.01).solve(scale, np.array([0.0, END]), "Radau")
    return math.tanh(solution.states[-1, 0])


def _exponents() -> dict[str, float]:
    """Fitted late slopes of log s, minus the predicted ones."""
    predicted = {0.0: -1 / 4, -0.5: -1 / 3, -1.0: -1 / 3}
    late = np.geomspace(1e9, END, 30)
    gaps = {}
    for second, exponent in predicted.items():
        states = setup.model(second, 0.01).solve(1.0, np.append(0.0, late)).states[1:]
        gaps[f"c2 {second:g}"] = setup.slope(late, np.tanh(states[:, 0])) - exponent
    return gaps


def _reversal() -> dict[str, float]:
    """At kappa 1/2: how far small scales overshoot, and how far a large one rises."""
    falling = {f"a0 {scale:g}, peak - end": _peak(scale) - _end(0.25, scale) for scale in (0.5, 1.0)}
    plateau = setup.model(0.25, 0.01).settled(3.0)
    return falling | {"a0 3, end - plateau": _end(0.25, 3.0) - plateau}


def _peak(scale: float) -> float:
    return setup.model(0.25, 0.01).path(scale, 1e5).peak


def _half_lives() -> dict[str, float]:
    """Slopes of the logarithm of the half-life, minus the predicted 3 and -1."""

    def half_life(second: float, scale: float) -> float:
        return setup.model(second, 0.01).path(scale, 1e13).half_life

    # Weak terms need a large scale: what competes with c_2 is of the order of sigma_2 C / a_0.
    scales, strengths = (8.0, 16.0, 32.0), (-0.05, -0.1, -0.2)
    by_scale = setup.slope(scales, [half_life(-0.25, scale) for scale in scales])
    by_strength = setup.slope([-c for c in strengths], [half_life(c, 256.0) for c in strengths])
    return {"initial scale": by_scale - 3, "strength": by_strength + 1}


def _floor() -> float:
    """Slope of the logarithm of the floor against the logarithm of the number of units."""
    counts = (1000, 10_000, 100_000)
    return setup.slope(counts, [setup.model(-0.5, 0.01, count).regime(1.0)[1] for count in counts])


def _collapse() -> dict[str, float]:
    """Largest distance of the alignment in slow time to that of epsilon 0.01, from slow time 1 to 100."""
    slow = np.geomspace(1.0, 100.0, 60)

    def over(ratio: float) -> Any:
        return np.tanh(setup.model(-0.5, ratio).solve(1.0, np.append(0.0, slow / ratio)).states[1:, 0])

    limit = over(0.01)
    return {f"epsilon {ratio:g}": float(np.abs(over(ratio) - limit).max()) for ratio in (0.2, 0.1, 0.05, 0.02)}
