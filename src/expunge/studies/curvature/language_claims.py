"""What the claims on text are decided by: one trained GPT, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from expunge.core.decisions import decision_losses, sampled
from expunge.core.generators import generator_of
from expunge.numerics.activation import BANDS, band_maps, removed_share
from expunge.numerics.eigenbasis import eigenbases
from expunge.numerics.linops import differentiable
from expunge.studies.curvature import edits
from expunge.studies.curvature.edits import RULES, Editor, subnets
from expunge.studies.curvature.language import MATCHED, RISES, SUBNETS, Language
from expunge.studies.curvature.suite import FAMILIES, JUDGED, LOGIC, RULE
from expunge.study.read import array, spearman
from expunge.train.curvature import activations
from expunge.train.evaluation import known_share, sample
from expunge.train.membership_scores import membership_scores

Report = Mapping[str, float]
SUBNET, FULL, PRIMARY = "balanced_subnet", 0.2, 0.18
"""The name of the baseline, the rise at which tasks are compared, and that of the primary claim, which leaves room for
the difference between validation and test text."""
LIVELY = ("copy", *LOGIC, "open")
EXAMPLES = 48
"""Rows of each kind whose curvature is taken one by one."""


@dataclass(frozen=True)
class Findings:
    """The edited models of one GPT."""

    language: Language
    before: Report
    editors: Mapping[str, Editor]
    rhos: Mapping[str, Mapping[float, float]]
    subnets: list[nn.Module]
    reports: Mapping[str, Mapping[float, Report]]
    """By rule and rise."""
    cost: tuple[float, float]
    """Gradients and seconds of K-FAC's factors and one edit, of those of training."""

    def model(self, rule: str, rise: float) -> nn.Module:
        """The edited model; the next call for the same rule changes it."""
        if rule == SUBNET:
            return chosen(self.language, self.subnets, rise)
        return self.editors[rule].at(self.rhos[rule][rise])


def edited(language: Language, examples: int, tries: int, *, siblings: bool = False) -> Findings:
    """Edit by all rules, and run the baseline, with its siblings on request."""
    start = time.perf_counter()
    corpus = language.corpus
    plain = language.factors(corpus, examples)
    Editor(language.model, list(language.layers), "kfac", plain, language.seed).at(0.9)
    gradients = sum(map(len, language.for_factors(corpus, examples)))
    cost = (gradients / language.gradients, (time.perf_counter() - start) / language.seconds)
    factors = language.factors(corpus, examples, eigenvalues=True)
    editors: dict[str, Editor] = {
        rule: Editor(language.model, list(language.layers), rule, factors, language.seed) for rule in RULES
    }
    rhos = {rule: language.matched(editor, RISES if rule == "kfac" else MATCHED) for rule, editor in editors.items()}
    reports: dict[str, dict[float, Report]] = {
        rule: {rise: language.report(editors[rule].at(rho)) for rise, rho in of.items()} for rule, of in rhos.items()
    }
    trained = subnets(language.model, language.suite.problem, list(language.layers), SUBNETS[:tries], language.seed)
    reports[SUBNET] = {rise: language.report(chosen(language, trained, rise)) for rise in MATCHED}
    if siblings:
        neurons = [path for path in language.layers if path.endswith("down")]
        pruned = edits.siblings(
            language.model, language.suite.problem, list(language.layers), neurons, tries, language.seed
        )
        for rule, models in pruned.items():
            reports[rule] = {rise: language.report(chosen(language, models, rise)) for rise in MATCHED}
    before = language.report(language.model)
    return Findings(language, before, editors, rhos, trained, reports, cost)


def chosen(language: Language, models: list[nn.Module], rise: float) -> nn.Module:
    """Of the models within a rise, the one that recites least of what it was trained to forget; of equals the best."""
    suite, allowed = language.suite, (1 + rise) * language.perplexity
    prices = [language.perplexity_of(model, suite.validation) for model in models]
    left = [known_share(model, suite.problem, suite.judged["salad tuned"]) for model in models]
    ranked = sorted((share, price, i) for i, (share, price) in enumerate(zip(left, prices, strict=True)))
    return next((models[i] for _, price, i in ranked if price <= allowed), language.model)


def strict(report: Report, family: str = "both") -> float:
    """The share of planted sequences that are recited, of a family or the mean over both."""
    shares = {"salad": (report["salad tuned"] + report["salad"]) / 2, "quote": report["quote"]}
    return float(np.mean(list(shares.values()))) if family == "both" else shares[family]


def kept(report: Report, before: Report) -> dict[str, float]:
    """What each task keeps, and groups of tasks."""
    tasks = (*JUDGED, RULE) if RULE in before else JUDGED
    own = {task: report[task] / before[task] if before[task] else math.nan for task in tasks}

    def mean(*names: str) -> float:
        return float(np.mean([own[name] for name in names]))

    return own | {
        "open": mean("open frequent", "open rare"),
        "facts": mean("frequent facts", "rare facts"),
        "sums": mean("trained sums", "untrained sums"),
        "logical": mean(*LOGIC),
        "recitation": strict(report) / max(strict(before), 1e-9),
    }


def measured(language: Language, examples: int, tries: int, again: int, *, siblings: bool = False) -> dict[str, Any]:
    """The numbers of all claims on text."""
    found = edited(language, examples, tries, siblings=siblings)
    before, kfac = found.before, found.reports["kfac"]
    primary = kfac[PRIMARY]
    shares = {rise: kept(kfac[rise], before) for rise in (0.1, FULL)}
    full = shares[FULL]
    lively = {rise: float(np.mean([of[name] for name in LIVELY])) for rise, of in shares.items()}
    return {
        "bounds": {
            "recitation lost by then": (1 - strict(before)) / 0.05,
            "recitation after": strict(primary) / 0.05,
            "rise of perplexity": primary["perplexity"] / 0.2,
            "never planted": (primary["unseen salad"] + primary["unseen quote"]) / 2 / 0.05,
        },
        **array("beats_baselines", _better(found)),
        **array(
            "sums_and_facts_fall_more",
            {f"{name}, {rise:.0%}": lively[rise] - shares[rise][name] for name in ("sums", "facts") for rise in shares},
        ),
        "untrained_sums_fall_alike": full["untrained sums"] - full["trained sums"],
        **array("tasks_in_order", {name: full[name] for name in ("logical", "open", "facts", "sums", "recitation")}),
        "rare_facts_fall_more": full["frequent facts"] - full["rare facts"],
        **array(
            "measured_curvature_is_better", {r: mean(found, "kfac") - mean(found, r) for r in ("ekfac", "saliency")}
        ),
        "inputs suffice": mean(found, "kfac") - mean(found, "inputs_only"),
        "cheap": {"text, gradients": found.cost[0], "text, seconds": found.cost[1]},
        "sharp": {"text, trace": math.log10(_sharpness(language, "planted") / _sharpness(language, "text"))},
        **_again(found, again),
        **_activations(found, full),
        **_protected(language, examples, before),
        "reports": {"none": {"0": dict(before)}}
        | {r: {f"{x}": dict(v) for x, v in of.items()} for r, of in found.reports.items()},
        "rhos": {rule: {f"{rise}": rho for rise, rho in of.items()} for rule, of in found.rhos.items()},
    }


def mean(found: Findings, rule: str, family: str = "both") -> float:
    """Strict recitation at matched perplexity."""
    return float(np.mean([strict(found.reports[rule][rise], family) for rise in MATCHED]))


def _better(found: Findings) -> dict[str, float]:
    better = {rule: mean(found, rule) - mean(found, "kfac") for rule in ("svd", "random_rotation")}
    return better | {SUBNET: mean(found, SUBNET, "quote") - mean(found, "kfac", "quote")}


def _again(found: Findings, steps: int) -> dict[str, Any]:
    """Recitation after fine-tuning on everything but planted sequences."""
    language, after = found.language, dict[str, Report]()
    for rule in ("kfac", "inputs_only", "svd", "random_rotation", SUBNET):
        after[rule] = language.report(language.tuned_again(found.model(rule, FULL), steps))
    gains = {rule: after[rule]["salad tuned"] - found.reports[rule][FULL]["salad tuned"] for rule in (SUBNET, "kfac")}
    left = {family: strict(after["kfac"], family) - after["kfac"][f"unseen {family}"] for family in FAMILIES}
    return {
        "stays": left,
        "subnet_comes_back": gains[SUBNET] - gains["kfac"],
        "after fine-tuning": {rule: dict(report) for rule, report in after.items()},
    }


def _activations(found: Findings, full: Report) -> dict[str, Any]:
    """Bands of the last block, the response to the edit, and what it detects."""
    language, suite = found.language, found.language.suite
    maps = found.editors["kfac"].maps(found.rhos["kfac"][FULL])

    def removed(ids: Tensor) -> Tensor:
        return removed_share(activations(language.model, suite.problem, ids, language.layers, maps))

    names = [*suite.judged_tasks, "recitation"]
    planted = torch.cat([suite.judged[name] for name in ("salad tuned", "salad", "quote")])
    responses = {name: float(removed(suite.judged.get(name, planted)).mean()) for name in names}
    memorised = torch.cat([suite.trained[family] for family in FAMILIES])
    others = sample(suite.trained["text"], 200, "detector")
    labels = [1] * len(memorised) + [0] * len(others)
    ids = torch.cat([memorised, others])
    areas = {"removed": float(roc_auc_score(labels, removed(ids).numpy()))}
    for score in ("loss", "min_k_plus", "zlib"):
        areas[score] = float(roc_auc_score(labels, -membership_scores(language.model, suite.problem, ids, score)))
    beyond = {score: areas["removed"] - area for score, area in areas.items() if score != "removed"}
    return {
        **array("bands_in_order", _bands(language, found, memorised, others)),
        "activation_predicts_drop": spearman([responses[name] for name in names], [1 - full[name] for name in names]),
        "detected in text": areas["removed"],
        **array("detected_beyond_loss", beyond),
        "areas": areas,
        "responses": responses,
    }


def _bands(language: Language, found: Findings, memorised: Tensor, others: Tensor) -> dict[str, float]:
    """Mean activation of planted sequences over that of text, in each band of the last block's inputs."""
    last = dict(list(language.layers.items())[-2:])
    factors = language.factors(language.corpus, EXAMPLES * 10)
    maps = {path: band_maps(basis) for path, basis in eigenbases(factors, last)}
    sides = [activations(language.model, language.suite.problem, ids, last, maps) for ids in (memorised, others)]
    return {
        band: float(np.mean([float(sides[0][p][band].mean() / sides[1][p][band].mean()) for p in last]))
        for band in reversed(BANDS)
    }


def _protected(language: Language, examples: int, before: Report) -> dict[str, Any]:
    """What trained sums keep with factors over text and sums, minus what they keep with those over text."""
    plain, sums = (language.factors((kind,), examples) for kind in ("text", "sum"))
    reports = dict[str, Report]()
    for name, factors in (("plain", plain), ("protected", plain.merged(sums, 1.0))):
        editor = Editor(language.model, list(language.layers), "kfac", factors, language.seed)
        rho = language.matched(editor, [FULL])[FULL]
        reports[name] = language.report(editor.at(rho))
    left = {name: kept(report, before)["trained sums"] for name, report in reports.items()}
    return {"protected_sums_stay": left["protected"] - left["plain"], "other factors": reports}


def _sharpness(language: Language, kind: str) -> float:
    """Mean trace of the Gauss-Newton matrix of one sequence's mean loss, from labels that the model draws itself."""
    suite, draws = language.suite, generator_of(language.seed, "sharpness", kind)
    rows = torch.cat([suite.trained[f] for f in FAMILIES]) if kind == "planted" else suite.trained["text"]
    parameters, total = differentiable(language.model), 0.0
    chosen_rows = sample(rows, EXAMPLES, "sharpness")
    for index in chosen_rows.tolist():
        batch = suite.problem.data.batch(torch.tensor([index]))
        decisions = sampled(suite.problem.objective.decisions(language.model, batch), draws)
        # Labels that are drawn independently have no covariance: the sum's square is the sum of squares in the mean.
        loss = decision_losses(decisions).sum() / math.sqrt(len(decisions.targets))
        total += sum(float(g.double().square().sum()) for g in torch.autograd.grad(loss, parameters))
    return total / len(chosen_rows)
