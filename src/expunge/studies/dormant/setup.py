"""Runs of the study `dormant`: two families of methods with their candidates, controls, attacks and predictors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from expunge.core.data import Data
from expunge.data.fashion_mnist import FashionMNIST
from expunge.study.choose import Entry
from expunge.study.read import Key

TUNING = (100, 101)
"""Seeds on which settings are chosen; never reported."""
OURS, UNTOUCHED, RANDOM = "noisy_distillation", "untouched", "random_weights"
MOVED = {"permuted": {}, "rescaled": {"permute": False, "rescale": 1.0}}
"""Controls: the function of random relabelling with other weights. Gradient descent treats the second differently."""
RESISTING = ("weight_distortion", "weight_distance_reg", "connectivity_breaking")
PERTURBED = ("weight_attenuation", "weight_dropout")
OTHER_IMAGES = "expunge.studies.dormant.setup:other_images"
SHORT = {"epochs": 2}

L2: Key = ("l2_distance", "weights")
BARRIER: Key = ("barrier", "forget")
ALIGNED: Key = ("aligned_l2", "weights")
PREDICTORS: Mapping[str, Key] = {
    "L2": L2,
    "barrier": BARRIER,
    "aligned": ALIGNED,
    "function": ("function_distance", "retain"),
    "curvature": ("curvature", "retain"),
}
PREDICTOR_LABELS = {
    "L2": "L2 distance to the original",
    "barrier": "loss barrier on the forget set (nats)",
    "aligned": "L2 distance after aligning hidden units",
    "function": "divergence from the original on retained data (nats)",
    "curvature": "top Hessian eigenvalue on retained data",
}
AUDITS = ("distance", "path", "aligned_distance", "function_distance", "curvature")

OUTPUT: Mapping[str, Sequence[Entry]] = {
    "random_relabel": [{"name": "random_relabel", "weight": weight} for weight in (0.1, 0.3, 1.0)],
    "neggrad_plus": [{"name": "neggrad_plus", "alternate": True, "learning_rate": rate} for rate in (2e-4, 5e-4, 1e-3)],
    "scrub": [
        {"name": "scrub", "forget_epochs": 10, "alpha": 1.0, "temperature": 1.0, "learning_rate": rate}
        for rate in (2e-4, 5e-4, 1e-3)
    ],
    "circuit_breakers": [{"name": "circuit_breakers", "hold": hold} for hold in (0.1, 0.2, 0.3)],
}
"""Methods that change outputs or hidden states on the forget set, with their candidates; they alternate between the
sets if they do so in the paper."""

WEIGHT: Mapping[str, Sequence[Entry]] = {
    "weight_distortion": [
        {"name": "weight_distortion", "sigma": sigma, "learning_rate": 1e-3} for sigma in (0.05, 0.1, 0.15)
    ],
    "weight_attenuation": [{"name": "weight_attenuation", "factor": factor} for factor in (0.2, 0.3, 0.5)],
    "weight_distance_reg": [
        {"name": "weight_distance_reg", "alpha": alpha, "learning_rate": 1e-3} for alpha in (1.0, 10.0, 100.0)
    ],
    "connectivity_breaking": [{"name": "connectivity_breaking", "alpha": alpha} for alpha in (0.1, 0.2, 0.5)],
}
"""Methods that move the weights away from the original's, with their candidates."""

MORE: Mapping[str, Sequence[Entry]] = {
    "finetune": [{"name": "finetune", "weight_decay": decay} for decay in (1e-4, 1e-3, 1e-2)],
    "l1_sparse": [{"name": "l1_sparse", "gamma": gamma} for gamma in (1e-3, 5e-3, 2e-2)],
    "ssd": [{"name": "ssd", "alpha": alpha} for alpha in (2.0, 5.0, 10.0)],
    "weight_dropout": [{"name": "weight_dropout", "p": p} for p in (0.2, 0.4, 0.5)],
}
"""The other methods of the paper, each on its own."""

SAFEGUARDS = ("scrub", "circuit_breakers", "weight_distortion")
SAFEGUARDED = ("tar", "connectivity_breaking", "weight_distance_reg")

ATTACKS: Mapping[str, Entry] = {
    "relearn": {},
    "relearn_k10": {"k": 10},
    "relearn_k60": {"k": 60},
    "relearn_hot": {"learning_rate": 1e-3},
    "relearn_hot_k60": {"learning_rate": 1e-3, "k": 60},
}

OTHERS: Mapping[str, Entry] = {
    "relearn_long": {"epochs": 20},
    "relearn_sgd": {"optimizer": "sgd", "learning_rate": 1e-2},
    "relearn_unseen": {"source": "test"},
    "relearn_only": {"source": "forget", "k": 60, "epochs": 20},
    "quantise_4": {"name": "quantise", "bits": 4},
    "prune": {"name": "prune"},
}
"""Other attacks, on our own method only: longer training, another optimiser, other data, only forget examples, or no
training at all."""

QUICK: Mapping[str, Any] = {
    "train": 400,
    "test": 200,
    "audits": AUDITS[:-1],
    "epochs": 6,
    "count": 40,
    "choosing": False,
    "strengths": (0.02, 0.1),
    "attacks": ("relearn",),
    "short": True,
}


def predictors(audits: Sequence[str]) -> dict[str, Key]:
    """The predictors that these audits measure."""
    return {name: key for name, key in PREDICTORS.items() if name != "curvature" or "curvature" in audits}


def base(data: Mapping[str, Any], epochs: int, count: int) -> dict[str, Any]:
    """The spec's data, model, training and task."""
    return {
        "data": {"name": "fashion_mnist", **data},
        "model": {"name": "cnn"},
        "train": {"epochs": epochs},
        "forget": {"name": "hard_examples", "count": count},
    }


def grid(*, every: bool, short: bool) -> dict[str, list[Entry]]:
    """Candidates by label."""
    candidates = {**OUTPUT, **WEIGHT, **(MORE if every else {})}
    return {label: [_shortened(entry, short) for entry in entries] for label, entries in candidates.items()}


def methods(chosen: Mapping[str, Entry], strengths: Sequence[float], *, every: bool, short: bool) -> list[Entry]:
    """Every model of the main run: the chosen methods, one family at several strengths, our method, and controls."""
    entries = [{**entry, "label": label} for label, entry in chosen.items()]
    family = {"name": "weight_distortion", "learning_rate": 1e-3}
    entries += [
        {**_shortened(family, short), "sigma": sigma, "label": f"weight_distortion-{sigma:g}"} for sigma in strengths
    ]
    entries += [
        _shortened({"name": OURS}, short),
        # A budget of one gradient allows no step: this gives the unchanged original, and the initial weights.
        {"name": "finetune", "budget": 1, "label": UNTOUCHED},
        {"name": "retrain", "budget": 1, "label": RANDOM},
        *({"name": "symmetry", "after": "random_relabel", "label": label, **how} for label, how in MOVED.items()),
        {"name": "retrain"},
    ]
    if every:
        entries += [_shortened({"name": "finetune", "after": "ssd", "label": "ssd-finetune"}, short)]
    return [*entries, *(_safeguarded(chosen) if every else [])]


def safeguarded() -> list[str]:
    """Labels of the methods that start from safeguarded models."""
    return [f"{first}-{name}" for first in SAFEGUARDS for name in SAFEGUARDED]


def _safeguarded(chosen: Mapping[str, Entry]) -> list[Entry]:
    """The methods that the paper starts from models that another method has safeguarded."""
    return [
        {**chosen.get(name, {"name": name}), "after": first, "label": f"{first}-{name}"}
        for first in SAFEGUARDS
        for name in SAFEGUARDED
    ]


def other_images(train: int, test: int = 2000) -> Data:
    """Fashion-MNIST images that the main run does not use, to test settings that were chosen on the main run's images.

    Args:
        train: Number of training images, from the 5,001st on.
        test: Number of test images, from the first 5,000, which no model here trains on.
    """
    data = FashionMNIST()()
    return replace(data, train=torch.arange(5000, 5000 + train), test=torch.arange(test))


def attack(name: str, short: bool) -> Entry:
    """An attack of the spec."""
    entry = {"name": "relearn", "label": name, **{**ATTACKS, **OTHERS}[name]}
    return {**entry, **SHORT} if short and entry["name"] == "relearn" else entry


def _shortened(entry: Entry, short: bool) -> Entry:
    brief = SHORT | ({"forget_epochs": 2} if "forget_epochs" in entry else {})
    return {**entry, **brief} if short and entry["name"] != "ssd" else dict(entry)
