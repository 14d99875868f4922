"""Unlearning that only puts knowledge to sleep, and what foretells it (From Dormant to Deleted, 2505.22310).

The forget set are the examples that models know by heart only, the attack is fine-tuning on retained data; what is
scored is the part of the forget set that no attack may use, at the peak of the attack, beside models that were
retrained without it. Hyper-parameters are chosen on other seeds by ToW before any attack. Beyond the paper: is distance
in weight space the *cause* of resistance, which attack is the worst, and does a tenth of retraining's cost suffice?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from expunge.base.part import Count
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Grid, Series
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.studies import _dormant as setup
from expunge.studies._choose import choose, tow
from expunge.studies._dormant_claims import CLAIMS
from expunge.studies._read import FORGET, TEST, OfSeed, array, mean_gap, spearman, with_error
from expunge.studies._study import Preset, Study, Work

GENTLE = "relearn"
"""The attack of the paper's main figures: retained data alone, the rate of unlearning."""


@dataclass(frozen=True)
class Dormant(Study):
    """Relearning attacks on unlearned models, and predictors of what comes back."""

    cite: ClassVar[str] = (
        "@inproceedings{siddiqui2025dormant, title={From Dormant to Deleted: Tamper-Resistant Unlearning Through "
        "Weight-Space Regularization}, author={Siddiqui, Shoaib Ahmed and others}, booktitle={NeurIPS}, year={2025}, "
        "note={arXiv:2505.22310}}"
    )
    paper: ClassVar[str] = "From Dormant to Deleted, 2025"
    side_by_side: ClassVar[bool] = False

    claims: ClassVar[tuple[Claim, ...]] = CLAIMS

    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0,), setup.QUICK),
        "cpu": Preset((0, 1, 2, 3, 4)),
        "long": Preset((0, 1, 2, 3, 4), {"every": True}),
        "paper": Preset((43,), lacks="CIFAR-10, a ResNet-18 trained for 300 epochs, and a GPU"),
    }

    train: Count = 5000
    """Training images of Fashion-MNIST."""
    epochs: Count = 25
    """Of training; unlearning and attack keep their ratio to the defaults of `methods` and `relearn`."""
    count: Count = 300
    """Examples to forget."""
    every: bool = False
    """All methods of the paper, TAR and safeguards among them, in place of four of each family."""
    choosing: bool = True
    """Whether hyper-parameters are chosen on other seeds, or the middle ones taken."""
    strengths: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Standard deviations of weight distortion, for the ranking within a family."""
    attacks: tuple[str, ...] = tuple(setup.ATTACKS)
    """Which of the attacks."""
    audits: tuple[str, ...] = setup.AUDITS
    """Which predictors; the distances are always needed."""
    short: bool = False
    """Everything but training in three epochs: only to see that it runs."""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """Choose settings on other seeds, then run every method, control and attack; and the easy forget set."""
        base = setup.base(self.train, self.epochs, self.count)
        grid = setup.grid(every=self.every, short=self.short)
        specs = {"tow": {**base, "seeds": list(setup.TUNING)}} if self.choosing else {}
        chosen = choose(work, specs, grid, tow)
        table = {
            **base,
            "seeds": list(seeds),
            "method": setup.methods(chosen["entries"], self.strengths, every=self.every, short=self.short),
            "attack": [setup.attack(name, self.short) for name in self.attacks],
            "audit": [{"name": name} for name in self.audits],
        }
        main = work.run(table, "hard")
        easy = {**base, "forget": {"name": "easy_examples", "count": self.count}, "seeds": list(seeds)}
        easy |= {"method": [chosen["entries"]["random_relabel"]], "attack": [setup.attack(GENTLE, self.short)]}
        work.run(easy, "easy")
        return {
            **chosen,
            "verdicts": {v["model"]: v["flags"] for v in main.verdicts},
            "cost": {label: main.cost_share(label) for label in main.methods},
            "scores": main.manifest["results"],
        }

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Read everything from the scores of the two runs."""
        hard, easy = (OfSeed(work.record(name).table, seed) for name in ("hard", "easy"))
        output, weight = ([m for m in basis["entries"] if m in family] for family in (setup.OUTPUT, setup.WEIGHT))
        found: dict[str, Any] = {}
        found |= with_error("output_recovers", {m: hard.gap(m, attack=GENTLE) for m in output})
        found |= with_error("weight_space_resists", {m: hard.gap(m, attack=GENTLE) for m in weight})
        found |= with_error("retrained_flat", hard.change(REFERENCE, GENTLE))
        found |= with_error("output_gains", mean_gap([hard.gain(m, GENTLE) for m in output]))
        found |= with_error("weight_space_costs", mean_gap([hard.gap(m, key=TEST) for m in weight]))
        found |= with_error("easy_shows_nothing", easy.gap("random_relabel", attack=GENTLE))
        found["original_keeps"] = hard.value(setup.UNTOUCHED, FORGET, GENTLE)
        found |= with_error("random_stays", hard.gap(setup.RANDOM, attack=GENTLE))
        if "relearn_k60" in self.attacks:
            found |= with_error("grows_with_k", mean_gap([hard.between(m, "relearn_k60", GENTLE) for m in output]))
        return found | self._predictors(hard, [*output, *weight]) | self._permuted(hard) | self._ours(hard, basis)

    def _predictors(self, hard: OfSeed, methods: Sequence[str]) -> dict[str, Any]:
        family = [f"weight_distortion-{sigma:g}" for sigma in self.strengths]
        after = {m: hard.value(m, FORGET, GENTLE) for m in (*methods, *family)}
        found: dict[str, Any] = {f"after {m}": value for m, value in after.items()}
        groups = {"methods": methods, "strengths": family}
        found |= array(
            "distance_ranks",
            {
                f"{name} over {what}": spearman([hard.value(m, key) for m in group], [after[m] for m in group])
                for what, group in groups.items()
                for name, key in (("L2", setup.L2), ("barrier", setup.BARRIER))
            },
        )
        for name, key in setup.predictors(self.audits).items():
            found |= {f"{name} {m}": hard.value(m, key) for m in (*methods, *family)}
            found[f"{name} ranks"] = spearman([hard.value(m, key) for m in methods], [after[m] for m in methods])
        found["function_ranks"] = found["function ranks"]
        gentle = [hard.gap(m, attack=GENTLE).value for m in methods]
        others = [a for a in self.attacks if a != GENTLE]
        for attack in self.attacks:
            found |= {f"{attack}: {m}": hard.gap(m, attack=attack).value for m in (setup.OURS, *methods)}
        if others:
            ranks = {a: spearman(gentle, [hard.gap(m, attack=a).value for m in methods]) for a in others}
            found |= array("ranking_survives", ranks)
        return found

    def _permuted(self, hard: OfSeed) -> dict[str, Any]:
        moved, plain = setup.PERMUTED, "random_relabel"
        return {
            "distance_without_forgetting": hard.value(moved, setup.L2) / hard.value(plain, setup.L2),
            "alignment_undoes": hard.value(moved, setup.ALIGNED) / hard.value(plain, setup.ALIGNED),
        } | with_error("distance_is_no_cause", hard.gap(moved, plain, attack=GENTLE))

    def _ours(self, hard: OfSeed, basis: Mapping[str, Any]) -> dict[str, Any]:
        worst = max((hard.gap(setup.OURS, attack=attack) for attack in self.attacks), key=lambda gap: gap.value)
        margin = 0.1 * hard.gap(ORIGINAL).value
        return {
            "tenth_erases": worst.value - margin,
            "tenth_erases.se": worst.se,
            "tenth_cheap": basis["cost"][setup.OURS],
        } | with_error("tenth_useful", hard.gap(setup.OURS, key=TEST))

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """What comes back against each predictor, and method by attack."""
        methods = [m for m in basis["entries"] if m in (*setup.OUTPUT, *setup.WEIGHT)]
        family = [f"weight_distortion-{sigma:g}" for sigma in self.strengths]

        def mean(name: str) -> float:
            return float(np.mean([float(found[name]) for found in seeds.values()]))

        def points(predictor: str, name: str, group: Sequence[str]) -> Series:
            x, y = (tuple(mean(f"{what} {m}") for m in group) for what in (predictor, "after"))
            return Series(name, x, y, labels=tuple(m.removeprefix("weight_distortion-") for m in group))

        charts: list[Figure] = [
            Chart(
                f"What comes back against {label}",
                label,
                "forget accuracy after the attack",
                (points(name, "methods", methods), points(name, "weight distortion by strength", family)),
                "points",
            )
            for name, label in setup.PREDICTOR_LABELS.items()
            if name in setup.predictors(self.audits)
        ]
        rows = (setup.OURS, *methods)
        values = tuple(tuple(mean(f"{attack}: {m}") for attack in self.attacks) for m in rows)
        names = tuple(a.removeprefix("relearn_") for a in self.attacks)
        gaps = Grid(
            "Forget accuracy above retrained models after each attack", "attack", "", names, rows, values, 0.0, 0.9
        )
        return [gaps, *charts]
