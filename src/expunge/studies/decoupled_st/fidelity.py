"""Gradients of the study's VAE against exact ones: over temperatures at one point of training, and online."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from expunge.base.seeds import derive
from expunge.numerics.estimator_diagnosis import EstimatorDiagnosis, diagnose_estimator
from expunge.numerics.estimators import DecoupledSTGS
from expunge.studies.decoupled_st.nets import CategoricalVAE
from expunge.studies.decoupled_st.setup import EXPERIMENTS, FINE, Cell, SideBySide, Sizes

NAME, EQUAL = "VAE", (1.0, 1.0)
IMAGES = 8
"""Images whose logits' gradients are compared."""


def trained(seed: int, rate: float, scale: Sizes) -> SideBySide:
    """One VAE that was trained at (1, 1)."""
    nets = SideBySide(_net(scale), [EQUAL], [rate], seed, DecoupledSTGS)
    nets.train(scale.steps)
    return nets


def diagnoses(nets: SideBySide, cells: Sequence[Cell], samples: int, seed: int) -> dict[Cell, EstimatorDiagnosis]:
    """Version 1 at these temperatures, on the weights as they are: the pixels' loss by the logits of some images."""
    net = nets.net
    assert isinstance(net, CategoricalVAE)
    with torch.no_grad():
        weights = nets.weights
        logits, loss = net.by_codes(weights, net.images.train[:IMAGES])
    noise = torch.Generator().manual_seed(derive(seed, "diagnosis"))
    return {cell: diagnose_estimator(DecoupledSTGS(*cell), logits, loss, noise, samples=samples) for cell in cells}


def online(seed: int, rate: float, scale: Sizes, looks: int, samples: int) -> tuple[float, list[float]]:
    """Train with the backward temperature of the largest cosine, chosen again at equal intervals.

    Returns:
        The test loss, and the chosen temperatures.
    """
    nets = SideBySide(_net(scale), [EQUAL], [rate], seed, DecoupledSTGS)
    chosen = []
    for look in range(looks):
        found = diagnoses(nets, [(1.0, backward) for backward in FINE], samples, derive(seed, "look", look))
        best = max(found, key=lambda cell: found[cell].cosine)
        nets.at([best])
        nets.train(int(np.diff(np.linspace(0, scale.steps, looks + 1).round())[look]))
        chosen.append(best[1])
    return float(nets.read()["loss"][0]), chosen


def _net(scale: Sizes) -> CategoricalVAE:
    net = EXPERIMENTS[NAME].net(scale.hidden, scale.images, scale.tests)
    assert isinstance(net, CategoricalVAE)
    return net
