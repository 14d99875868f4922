"""Unlearning that leaves knowledge dormant, and what predicts it (From Dormant to Deleted, 2505.22310).

The forget set contains the examples that models know by heart only. The attack is fine-tuning on retained data. Scored
is the part of the forget set that no attack may use, at the peak of the attack, compared with models that were
retrained without the forget set. Hyper-parameters are chosen on other seeds, before any attack, by how close forget and
retain accuracy are to those of the retrained model. Beyond the paper: is distance in weight space the *cause* of
resistance, which attack is the worst, and is a tenth of retraining's cost enough?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from expunge.base.part import Count
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Grid, Series
from expunge.evidence.intervals import student
from expunge.evidence.table import REFERENCE
from expunge.studies.dormant import setup
from expunge.study.choose import choose, near_retrained
from expunge.study.claims import read_claims
from expunge.study.read import END, FORGET, TEST, Key, OfSeed, array, mean_gap, spearman, with_error
from expunge.study.study import Preset, Study, Work

GENTLE, WORST = "relearn", "relearn_hot_k60"
"""The attack of the paper's main figures (only retained data, step size of unlearning), and the strongest one here."""


@dataclass(frozen=True)
class DormantStudy(Study):
    """Relearning attacks on unlearned models, and predictors of what comes back."""

    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "From Dormant to Deleted, 2025"
    side_by_side: ClassVar[bool] = False

    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)

    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0,), setup.QUICK),
        "cpu": Preset((0, 1, 2, 3, 4)),
        "long": Preset((0, 1, 2, 3, 4), {"every": True}),
        "paper": Preset((43,), lacks="CIFAR-10, a ResNet-18 trained for 300 epochs, and a GPU"),
    }

    train: Count = 5000
    """Training images of Fashion-MNIST."""
    test: Count | None = None
    """Test images of Fashion-MNIST; all if there is no number."""
    epochs: Count = 25
    """Epochs of training; unlearning and attacks keep the defaults of `methods` and `relearn`."""
    count: Count = 300
    """Examples to forget."""
    every: bool = False
    """All methods of the paper with TAR and safeguards, instead of four per family; more attacks on our method."""
    choosing: bool = True
    """Whether to choose hyper-parameters on other seeds; otherwise the study takes the middle candidates."""
    strengths: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Standard deviations of weight distortion, for the ranking within a family."""
    attacks: tuple[str, ...] = tuple(setup.ATTACKS)
    """Attacks to run."""
    audits: tuple[str, ...] = setup.AUDITS
    """Audits that measure the predictors; the distances are always needed."""
    short: bool = False
    """Very short unlearning and attacks: only to test that the study runs."""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """Choose settings on other seeds; run methods, controls, attacks, the easy set; ours on other images."""
        images = {"train": self.train} | ({"test": self.test} if self.test else {})
        base = setup.base(images, self.epochs, self.count)
        grid = setup.grid(every=self.every, short=self.short)
        specs = {"near": {**base, "seeds": list(setup.TUNING)}} if self.choosing else {}
        chosen = choose(work, specs, grid, near_retrained)
        entries, attacks = chosen["entries"], [setup.attack(name, self.short) for name in self.attacks]
        everything = setup.methods(entries, self.strengths, every=self.every, short=self.short)
        ours = next(entry for entry in everything if entry["name"] == setup.OURS)
        specs = {
            "hard": base | {"method": everything, "attack": attacks, "audit": [{"name": name} for name in self.audits]},
            "easy": base
            | {"forget": {"name": "easy_examples", "count": self.count}}
            | {"method": [entries["random_relabel"]], "attack": [setup.attack(GENTLE, self.short)]},
            "fresh": base
            | {"data": {"name": setup.OTHER_IMAGES, **images}}
            | {"method": [ours, {"name": "retrain"}]}
            | {"attack": [setup.attack(name, self.short) for name in self._on_ours()]},
        }
        runs = {name: work.run({**spec, "seeds": list(seeds)}, name) for name, spec in specs.items()}
        return {
            **chosen,
            "verdicts": {name: {v["model"]: v["flags"] for v in run.verdicts} for name, run in runs.items()},
            "cost": {label: runs["hard"].cost_share(label) for label in runs["hard"].methods},
            "scores": {name: run.manifest.results for name, run in runs.items()},
        }

    def _on_ours(self) -> list[str]:
        """The attacks on our own method."""
        return [*self.attacks, *(setup.OTHERS if self.every else ())]

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Read everything from the scores of the runs."""
        hard, easy, fresh = (OfSeed(work.record(name).table, seed) for name in ("hard", "easy", "fresh"))
        output = [m for m in basis["entries"] if m in setup.OUTPUT]
        methods = [m for m in basis["entries"] if m in (*setup.OUTPUT, *setup.WEIGHT)]
        measured = self._recovery(hard, output, basis) | with_error("retrained_flat", hard.end(REFERENCE, GENTLE))
        measured |= with_error("easy_shows_nothing", easy.gap("random_relabel", attack=GENTLE))
        measured["original_keeps"] = hard.value(setup.UNTOUCHED, END, GENTLE)
        measured |= with_error("random_stays", hard.gap(setup.RANDOM, attack=GENTLE))
        measured |= self._predictors(hard, methods) | self._moved(hard) | self._ours(fresh, basis)
        return measured | self._attacks(hard, methods) | self._all(hard, basis)

    def _recovery(self, hard: OfSeed, output: Sequence[str], basis: Mapping[str, Any]) -> dict[str, Any]:
        both = {f"{m} left": hard.gap(m, attack=GENTLE) for m in output}
        both |= {f"{m} gained": hard.gain(m, GENTLE) for m in output}
        measured = with_error("output_recovers", both)
        resisting = {m: hard.gap(m, attack=GENTLE) for m in setup.RESISTING}
        perturbed = {m: hard.gap(m, attack=GENTLE) for m in setup.PERTURBED if m in basis["entries"]}
        measured |= with_error("weight_space_resists", resisting) | with_error("attenuation_resists", perturbed)
        measured |= with_error("weight_space_costs", mean_gap([hard.gap(m, key=TEST) for m in setup.RESISTING]))
        if "relearn_k60" in self.attacks:
            measured |= with_error("grows_with_k", mean_gap([hard.between(m, "relearn_k60", GENTLE) for m in output]))
        if self.every:
            safe = {m: hard.gap(m, attack=GENTLE) for m in setup.safeguarded()}
            measured |= with_error("safeguarded_resists", safe)
        return measured

    def _predictors(self, hard: OfSeed, methods: Sequence[str]) -> dict[str, Any]:
        family = [f"weight_distortion-{sigma:g}" for sigma in self.strengths]
        after = {m: hard.value(m, FORGET, GENTLE) for m in (*methods, *family)}
        measured: dict[str, Any] = {f"after {m}": value for m, value in after.items()}

        def ranks(key: Key, group: Sequence[str]) -> float:
            return spearman([hard.value(m, key) for m in group], [after[m] for m in group])

        for name, key in setup.predictors(self.audits).items():
            measured |= {f"{name} {m}": hard.value(m, key) for m in (*methods, *family)}
        pairs = {
            f"{name} over {what}": (key, group)
            for what, group in (("methods", methods), ("strengths", family))
            for name, key in (("L2", setup.L2), ("barrier", setup.BARRIER))
        }
        measured |= array("distance_ranks", {name: ranks(*pair) for name, pair in pairs.items()})
        both = {"function": setup.PREDICTORS["function"], "aligned L2": setup.ALIGNED}
        measured |= array("function_ranks", {name: ranks(key, methods) for name, key in both.items()})
        if "curvature" in self.audits:
            measured["curvature_ranks"] = abs(ranks(setup.PREDICTORS["curvature"], methods))
        return measured

    def _attacks(self, hard: OfSeed, methods: Sequence[str]) -> dict[str, Any]:
        left = {a: {m: hard.gap(m, attack=a) for m in methods} for a in self.attacks}
        others = [a for a in self.attacks if a != GENTLE]
        if not others:
            return {}
        gaps = {a: [gap.value for gap in left[a].values()] for a in self.attacks}
        measured = array("ranking_survives", {a: spearman(gaps[GENTLE], gaps[a]) for a in others})
        harder = {a: mean_gap([hard.between(m, WORST, a) for m in methods]) for a in self.attacks if a != WORST}
        return measured | with_error("worst_attack", harder)

    def _moved(self, hard: OfSeed) -> dict[str, Any]:
        plain, moved = "random_relabel", "permuted"
        farther = {
            name: hard.value(moved, key) - max(hard.value(m, key) for m in setup.RESISTING)
            for name, key in (("L2", setup.L2), ("barrier", setup.BARRIER))
        }
        same = {label: hard.gap(label, plain, attack=GENTLE) for label in setup.MOVED}
        ratio = hard.value(moved, setup.ALIGNED) / hard.value(plain, setup.ALIGNED)
        measured = {"alignment_undoes": ratio} | array("distance_without_forgetting", farther)
        return measured | with_error("distance_is_no_cause", same)

    def _ours(self, fresh: OfSeed, basis: Mapping[str, Any]) -> dict[str, Any]:
        looks: list[str | None] = [None, *self._on_ours()]
        left = {look or "before": fresh.margin(setup.OURS, look, 0.1) for look in looks}
        under = {look or "before": fresh.margin(setup.OURS, look, -0.1) for look in looks}
        measured = with_error("tenth_erases", left) | with_error("tenth_unmarked", under)
        measured |= {"tenth_cheap": basis["cost"][setup.OURS]}
        return measured | with_error("tenth_useful", fresh.gap(setup.OURS, key=TEST))

    def _all(self, hard: OfSeed, basis: Mapping[str, Any]) -> dict[str, Any]:
        """What is left of every model before and after each attack, and its utility: for figures."""
        models = [m for m in basis["cost"] if not m.startswith("weight_distortion-") or m in setup.safeguarded()]
        measured: dict[str, Any] = {"models": models}
        for model in models:
            measured[f"left {model}"] = [hard.gap(model, attack=a).value for a in (None, *self.attacks)]
            measured[f"utility {model}"] = hard.gap(model, key=TEST).value
        return measured

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """How far each got, and what comes back against each predictor."""
        methods = [m for m in basis["entries"] if m in (*setup.OUTPUT, *setup.WEIGHT)]
        family = [f"weight_distortion-{sigma:g}" for sigma in self.strengths]
        groups = {"methods": methods, "weight distortion by strength": family}
        charts: list[Figure] = [
            Chart(
                f"What comes back against {label}",
                label,
                "forget accuracy after the attack",
                tuple(_points(seeds, predictor, name, group) for name, group in groups.items()),
                "points",
            )
            for predictor, label in setup.PREDICTOR_LABELS.items()
            if predictor in setup.predictors(self.audits)
        ]
        names = ("before", *(a.removeprefix("relearn_") for a in self.attacks), "test", "cost")
        models = tuple(next(iter(seeds.values()))["models"])
        values = tuple(
            (*_mean(seeds, f"left {m}"), *_mean(seeds, f"utility {m}"), float(basis["cost"][m] or 0.0)) for m in models
        )
        title = (
            "Forget accuracy above retrained models before and after each attack, test accuracy above theirs, and cost"
        )
        return [Grid(title, "", "", names, models, values, 0.0, 0.9), *charts]


def _mean(seeds: Mapping[int, Measured], name: str) -> tuple[float, ...]:
    values = np.array([np.atleast_1d(np.asarray(measured[name], dtype=float)) for measured in seeds.values()])
    return tuple(map(float, values.mean(axis=0)))


def _points(seeds: Mapping[int, Measured], predictor: str, name: str, group: Sequence[str]) -> Series:
    """Means over seeds, with the 90 % interval of the accuracy after the attack."""
    after = [student(np.array([float(measured[f"after {m}"]) for measured in seeds.values()])) for m in group]
    x = tuple(_mean(seeds, f"{predictor} {m}")[0] for m in group)
    y, low, high = (tuple(column) for column in zip(*after, strict=True))
    return Series(name, x, y, low, high, labels=tuple(m.removeprefix("weight_distortion-") for m in group))
