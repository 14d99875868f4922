"""What the claims on wrong labels are decided by: one trained classifier, measured."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from expunge.numerics.activation import removed_share
from expunge.studies.curvature.edits import RULES, Editor, subnets
from expunge.studies.curvature.labels import SHARP, Labels, curvatures, most_accurate
from expunge.study.read import array
from expunge.train.curvature import activations, kronecker_factors
from expunge.train.evaluation import known, sample

CAP, ROOM = 0.1, 0.01
"""Most wrong labels that may be left, and validation accuracy that a ViT's edit may cost."""
POWERS = (-3.0, -0.3)
"""Range of the decimal logarithm of 1 - rho."""
SUBNETS = [
    {"share": share, "learning_rate": rate, "epochs": 5} for share in (0.05, 0.1, 0.2, 0.5) for rate in (0.1, 1.0)
]
"""Settings of BalancedSubnet to choose from."""
RIVALS = ("svd", "random_rotation", "balanced_subnet")
RELEARN = 5
"""Epochs of fine-tuning on rightly labelled images."""


def measured(labels: Labels, strengths: int, tries: int) -> dict[str, Any]:
    """The numbers of all claims on the labels of an MLP.

    Args:
        labels: The trained MLP.
        strengths: Number of rhos to try of each rule.
        tries: Settings of BalancedSubnet.
    """
    problem, factors, tried = labels.problem, labels.factors(), _rhos(strengths)
    editors = {rule: Editor(labels.model, list(labels.layers), rule, factors, labels.seed) for rule in RULES}
    rows = {"none": _row(labels, labels.model), "early stopping": _row(labels, labels.early)}
    rhos = {rule: labels.accurate(editor, 0.0, tried) for rule, editor in editors.items()}
    rows |= {rule: _row(labels, editors[rule].at(rho)) for rule, rho in rhos.items()}
    again = labels.tuned_again(editors["kfac"].at(rhos["kfac"]), RELEARN)
    rows["kfac, fine-tuned"] = _row(labels, again)
    none, kfac, inputs = rows["none"], rows["kfac"], rows["inputs_only"]
    best = _best(labels, editors, tried, tries)
    differences = {"accuracy": kfac["test"] - inputs["test"], "wrong labels": kfac["wrong"] - inputs["wrong"]}
    return {
        "bounds": {"wrong labels": kfac["wrong"] / CAP, "loss of accuracy": (none["test"] - kfac["test"]) / ROOM},
        "true_labels_recovered": kfac["validation"] - kfac["true"],
        "accuracy_rises": kfac["test"] - none["test"],
        "early_stopping_is_better": rows["early stopping"]["test"] - kfac["test"],
        **array("labels_beat_baselines", {rule: best["kfac"] - own for rule, own in best.items() if rule in RIVALS}),
        "inputs suffice": differences,
        "stays": rows["kfac, fine-tuned"]["wrong"] - labels.wrong_by_chance(again),
        "detected in labels": _detected(labels, editors["kfac"], rhos["kfac"]),
        "cheap": _cost(labels),
        **_premise(labels),
        "label rows": rows,
        "label rhos": rhos,
        "most accurate": best,
        "wrong": len(problem.forget),
    }


def bounds(labels: Labels, strengths: int, wrong: float, loss: float) -> dict[str, float]:
    """Wrong labels that K-FAC's edit leaves, and the accuracy that it costs, each divided by a bound."""
    editor = Editor(labels.model, list(labels.layers), "kfac", labels.factors(), labels.seed)
    edited = editor.at(labels.accurate(editor, ROOM, _rhos(strengths)))
    fall = labels.accuracy(labels.model, labels.problem.test) - labels.accuracy(edited, labels.problem.test)
    return {"wrong labels": labels.accuracy(edited, labels.problem.forget) / wrong, "loss of accuracy": fall / loss}


def _row(labels: Labels, model: nn.Module) -> dict[str, float]:
    problem = labels.problem
    return {
        "wrong": labels.accuracy(model, problem.forget),
        "true": labels.recovered(model),
        "validation": labels.accuracy(model, labels.validation),
        "test": labels.accuracy(model, problem.test),
    }


def _rhos(strengths: int) -> list[float]:
    return [1 - 10**power for power in np.linspace(*POWERS, strengths)]


def _best(labels: Labels, editors: dict[Any, Editor], rhos: list[float], tries: int) -> dict[str, float]:
    best = {rule: most_accurate(labels, map(editor.at, rhos), CAP) for rule, editor in editors.items()}
    # BalancedSubnet sees half of the wrong labels, those by which all rules are chosen.
    seen = labels.halved()
    trained = subnets(labels.model, seen, list(labels.layers), SUBNETS[:tries], labels.seed)
    return best | {"balanced_subnet": most_accurate(labels, trained, CAP)}


def _detected(labels: Labels, editor: Editor, rho: float) -> float:
    """Area under the ROC curve of the response to the edit: wrongly labelled against other training images."""
    problem = labels.problem
    others = sample(problem.retain, len(problem.forget), "detector")
    ids = torch.cat([problem.forget, others])
    shares = removed_share(activations(labels.model, problem, ids, labels.layers, editor.maps(rho)))
    return float(roc_auc_score([1] * len(problem.forget) + [0] * len(others), shares.numpy()))


def _cost(labels: Labels) -> dict[str, float]:
    """Gradients and seconds of K-FAC's factors and one edit, of those of training."""
    start = time.perf_counter()
    plain = kronecker_factors(labels.model, labels.problem, labels.for_factors, labels.layers, seed=labels.seed)
    Editor(labels.model, list(labels.layers), "kfac", plain, labels.seed).at(0.95)
    seconds = time.perf_counter() - start
    return {
        "labels, gradients": len(labels.for_factors) / labels.gradients,
        "labels, seconds": seconds / labels.seconds,
    }


def _premise(labels: Labels) -> dict[str, Any]:
    """Single examples: wrongly labelled ones that the model has memorised, against rightly labelled ones."""
    problem, model = labels.problem, labels.model

    def memorised(ids: Tensor, name: str) -> Tensor:
        return sample(ids[known(model, problem, ids)], SHARP, name)

    wrong, right = memorised(problem.forget, "wrong"), memorised(problem.retain, "right")
    trace, top, cosines = curvatures(labels, torch.cat([wrong, right]))
    size = len(wrong)

    def ratio(values: Tensor) -> float:
        return math.log10(float(values[:size].mean() / values[size:].mean()))

    def aligned(block: Tensor) -> float:
        count = len(block)
        return float((block.sum() - block.diagonal().sum()) / (count * (count - 1)))

    return {
        "sharp": {"labels, trace": ratio(trace), "labels, top eigenvalue": ratio(top)},
        "premise_directions_differ": aligned(cosines[size:, size:]) - aligned(cosines[:size, :size]),
        "aligned": {"memorised": aligned(cosines[:size, :size]), "controls": aligned(cosines[size:, size:])},
    }
