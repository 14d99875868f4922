"""Sharpness at the edge of stability, in training and in unlearning (2207.12678, attribution probable; 2103.00065).

Chains of five layers without biases are trained by full-batch gradient descent on squared error, on images with random
classes, which take long to fit. The step size is chosen on another seed, by numbers that are not reported: on a
logarithmic scale its edge is three quarters of the way from the initial sharpness to the highest sharpness that small
steps reach. So training takes long to reach the edge, as in the papers, and would continue to rise. A second run has
the edge half of the way: large steps are another regime. Beyond the papers: does *unlearning* cross the edge, and does
that predict the damage?
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
from expunge.evidence.figure import Chart, Figure, Series
from expunge.studies.edge_of_stability import setup
from expunge.studies.edge_of_stability.sgd import batch_sharpness
from expunge.studies.edge_of_stability.unlearning import unlearned
from expunge.study.claims import read_claims
from expunge.study.read import array, spearman
from expunge.study.study import Preset, Study, Work

TUNING = 100
"""Seed for the choice of step sizes; never reported."""
AWAY = 0.02
"""Small step size, relative to the largest that is stable at the initial sharpness."""
FAR, NEAR = 0.75, 0.5
"""Position of the edge between the initial sharpness and that reached by small steps, on a logarithmic scale."""
TWO_LAYERS, ENTROPY = "two linear layers", "tanh, cross-entropy"
SMALL = 32
"""Examples per minibatch."""


@dataclass(frozen=True)
class EdgeOfStabilityStudy(Study):
    """Hovering, phases and the output layer's norm in full-batch training, and the edge in unlearning."""

    cite: ClassVar[str] = "wang2022sharpness"
    paper: ClassVar[str] = "Analyzing Sharpness along GD Trajectory, 2022"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset(
            (0,), {"images": 64, "width": 48, "steps": 250, "every": 20, "window": 40, "ascent": 10, "large": False}
        ),
        "cpu": Preset((0, 1, 2, 3, 4)),
        "long": Preset((0, 1, 2, 3, 4), {"images": 1000, "width": 200, "steps": 6000, "window": 600}),
        "paper": Preset((0,), lacks="the paper's subsets and step sizes, which could not be read"),
    }

    images: Count = 200
    """Examples, all in one batch."""
    width: Count = 100
    """Units of each hidden layer; the preset `long` has the paper's 200."""
    steps: Count = 4000
    """Steps of gradient descent."""
    every: Count = 20
    """Steps between readings of the sharpness."""
    window: Count = 300
    """Number of steps after the first crossing that are all read."""
    large: bool = True
    """Whether to run large steps too; on a narrow network they diverge."""
    ascent: Count = 150
    """Largest number of steps of unlearning."""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """Step sizes by network: the edge is between the initial sharpness and that reached by small steps."""
        torch.set_num_threads(1)
        rates = {name: self._rates(name) for name in (*setup.NETS, TWO_LAYERS, ENTROPY)}
        return {"rates": {name: far for name, (far, _) in rates.items()}, "large": rates["tanh"][1]}

    def _rates(self, name: str) -> tuple[float, float]:
        model, batch, loss = self._made(name, TUNING)
        first = setup.descend(model, batch, 1.0, 1, every=1, loss=loss).ratios[0]
        rate = AWAY / first
        model, batch, loss = self._made(name, TUNING)
        track = setup.descend(model, batch, rate, self.steps, every=5 * self.every, loss=loss)
        first, most = track.ratios[0], max(track.ratios)
        far, near = (rate / (first ** (1 - way) * most**way) for way in (FAR, NEAR))
        return far, near

    def _made(self, name: str, seed: int) -> tuple[torch.nn.Sequential, setup.Examples, setup.Loss]:
        generator = torch.Generator().manual_seed(derive(seed, "examples"))
        layers = 2 if name == TWO_LAYERS else setup.LAYERS
        activation = {TWO_LAYERS: "linear", ENTROPY: "tanh"}.get(name, name)
        model = setup.network(activation, self.width, derive(seed, f"weights {name}"), layers)
        return model, setup.examples(self.images, generator), setup.cross_entropy if name == ENTROPY else setup.squared

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Train every network with readings, and unlearn from the trained tanh network."""
        rates, tracks, trained = basis["rates"], {}, {}
        for name in rates:
            model, batch, loss = self._made(name, seed)
            window = 0 if name == ENTROPY else self.window
            tracks[name] = setup.descend(
                model, batch, rates[name], self.steps, every=self.every, window=window, loss=loss
            )
            trained[name] = model, batch
        measured = self._edges({name: tracks[name] for name in setup.NETS})
        measured |= array("norm_law", {n: float(np.mean(tracks[n].agreeing)) for n in (*setup.NETS, TWO_LAYERS)})
        measured["two_layers_linear"] = setup.hovering(tracks[TWO_LAYERS])
        if self.large:
            model, batch, _ = self._made("tanh", seed)
            track = setup.descend(model, batch, basis["large"], self.steps // 2, every=self.every)
            measured["large_steps_stay_above"] = setup.hovering(track)
        last = {name: float(np.mean(tracks[name].ratios[-10:])) for name in ("tanh", ENTROPY)}
        measured["cross_entropy_falls"] = last["tanh"] - last[ENTROPY]
        measured |= array("gentle_steps_go_beyond", {n: self._beyond(n, seed, rates[n], 10, 1) for n in setup.NETS})
        slow = {name: self._beyond(name, seed, rates[name], 3, 3) for name in ("tanh", "ELU")}
        measured |= array("gentle_steps_in_the_same_time", slow)
        measured |= self._minibatches(seed, rates["tanh"]) | self._ascent(*trained["tanh"], rates["tanh"], seed)
        shown = {name: [track.steps, track.ratios] for name, track in tracks.items()}
        return measured | {"tracks": shown, "norms": tracks["tanh"].norms}

    def _edges(self, tracks: Mapping[str, setup.Track]) -> dict[str, Any]:
        measured = array("hovers", {name: setup.hovering(track) for name, track in tracks.items()})
        measured |= array("comes_back", {name: float(setup.upward(track)) for name, track in tracks.items()})
        shares, ranks = {}, {}
        for name, track in tracks.items():
            seen = setup.increments(track, over=4)
            phase = seen["phase"]
            shares[name] = min(float(np.mean(phase == p)) for p in (1, 2, 3, 4)) if len(phase) else 0.0
            inside = phase > 1
            ranks[name] = spearman(seen["norm"][inside], seen["sharpness"][inside]) if inside.sum() > 4 else 0.0
        return measured | array("four_phases", shares) | array("norm_indicates", ranks)

    def _beyond(self, name: str, seed: int, rate: float, part: int, longer: int) -> float:
        """The highest sharpness with a smaller step size and more steps, in units of the larger step size's edge."""
        model, batch, loss = self._made(name, seed)
        steps, every = longer * self.steps, 10 * longer * self.every
        return part * max(setup.descend(model, batch, rate / part, steps, every=every, loss=loss).ratios)

    def _minibatches(self, seed: int, rate: float) -> dict[str, Any]:
        model, batch, _ = self._made("tanh", seed)
        generator = torch.Generator().manual_seed(derive(seed, "minibatches"))
        whole, single = batch_sharpness(model, batch, rate, SMALL, self.steps, 5 * self.every, generator)
        half = len(whole) // 2
        return {
            "minibatches_stay_below": float(np.median(whole[half:])),
            "batches_hover": float(np.mean(single[half:])),
        }

    def _ascent(self, model: torch.nn.Sequential, batch: setup.Examples, rate: float, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(derive(seed, "forget"))
        runs = unlearned(model, batch, rate, self.ascent, generator)
        ratios, damages, factors = ([getattr(run, name) for run in runs] for name in ("highest", "damage", "factor"))
        own = [run.highest for run in runs if run.factor == 1]
        ranks = spearman(ratios, damages)
        excess = {"beyond a half": ranks - 0.5, "beyond the step size": ranks - spearman(factors, damages)}
        measured = {"ascent_crosses": min(own), "ascent": [[run.highest, run.damage] for run in runs]}
        return measured | array("crossing_foretells_damage", excess)

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """The first seed's trajectories, and damage against the highest sharpness of every run of unlearning."""
        first = next(iter(seeds.values()))
        lines = tuple(Series(name, *map(tuple, track)) for name, track in first["tracks"].items())
        points = np.array([point for measured in seeds.values() for point in measured["ascent"]])
        damage = Series("", tuple(points[:, 0]), tuple(points[:, 1]))
        edge = "sharpness, of the edge"
        return [
            Chart("Sharpness in training", "step", edge, lines),
            Chart("Unlearning: damage", f"highest {edge}", "retained loss gained", (damage,), "points"),
        ]
