"""Partly discovered corruption, over the plane of discovery and regularity (REM, 2505.17730).

Random labels, two confused classes or a trigger are planted. The discovered share of them is unlearned; the rest stays
in the retain set. *Healed* is the accuracy against the true labels on all planted examples, with their trigger.
*Utility* is the accuracy on clean test images (of the classes that were not confused). Beyond the paper: the harm on
the confused classes, attacks on models after redirection, and intermediate steps from wrong labels to a trigger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from expunge.base.part import Count
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Figure, Grid
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.studies.rem import setup
from expunge.study.choose import choose, kept_and_forgotten
from expunge.study.claims import read_claims
from expunge.study.read import FORGET, TEST, Gap, Key, OfSeed, array, mean_gap, spearman, with_error
from expunge.study.study import Preset, Study, Work

HEALED: Key = ("healed", "corrupted")
CONFUSED: Key = ("accuracy", "holdout")
ATTACK = "relearn"
KEPT = "untouched"
DIAL = (0.0, 0.5, 1.0)
"""Shares of the poisoned images with the trigger."""
ATTACKED = (0.5, 1.0)
"""Discovery rates of the attacks on REM: with corruption among the retained examples, and without."""


@dataclass(frozen=True)
class RemStudy(Study):
    """Utility and healing over the plane of discovery and regularity."""

    cite: ClassVar[str] = "schoepf2025rem"
    paper: ClassVar[str] = "Redirection for Erasing Memory, 2025"
    side_by_side: ClassVar[bool] = False
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0,), setup.QUICK),
        "cpu": Preset((0, 1, 2)),
        "long": Preset((0, 1, 2), {"rates": (0.1, 0.25, 0.5, 0.75, 1.0), "every": True}),
        "paper": Preset((0, 1, 2), lacks="CIFAR-10, SVHN, a ResNet-9, a ViT, and about a week of an A100"),
    }

    train: Count = 3000
    """Training images of Fashion-MNIST."""
    test: Count | None = None
    """Test images of Fashion-MNIST; all if there is no number."""
    epochs: Count = 25
    """Epochs of training."""
    rates: tuple[float, ...] = (0.1, 0.5, 1.0)
    """Discovered shares of the corruption."""
    every: bool = False
    """Whether to run more baselines."""
    choosing: bool = True
    """Whether to choose hyper-parameters on another seed and rate; otherwise the study takes the middle candidates."""
    small: bool = False
    """Three methods with two epochs: only to test that the study runs."""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """Choose settings on another seed and rate; run each cell, the dial, and models with example-tied dropout."""
        tuning = {r: self._base(r, setup.TUNING_RATE) | {"seeds": list(setup.TUNING)} for r in setup.REGULARITIES}
        grid = setup.grid(every=self.every, small=self.small)
        chosen = choose(work, tuning if self.choosing else {}, grid, kept_and_forgotten)
        scores = {}
        for name, spec in self._runs(chosen["entries"]):
            scores[name] = work.run({**spec, "seeds": list(seeds)}, name).manifest.results
        return {**chosen, "scores": scores}

    def _base(self, regularity: str, rate: float, **task: Any) -> dict[str, Any]:
        return setup.base(self.train, self.test, self.epochs, regularity, rate, **task)

    def _runs(self, chosen: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Name and spec, without seeds, of every run: the cells, some of them attacked or tied, and the dial.

        Attacks are as long as unlearning, and run only on REM's result (its base without memory) and on retraining.
        """
        cells = {setup.cell(r, rate): self._base(r, rate) for rate in self.rates for r in setup.REGULARITIES}
        everything, rem = setup.methods(chosen), {**chosen["rem"], "label": "rem"}
        untouched = {"name": "finetune", "budget": 1, "label": KEPT}
        attack = setup.shortened({"name": ATTACK}, self.small)
        tied = [untouched, *(method for method in everything if method.get("label") in self._tied())]
        runs = {cell: {**base, "method": everything} for cell, base in cells.items()}
        for cell, base in cells.items():
            if base["forget"]["discovery"] in ATTACKED:
                runs[f"attacked-{cell}"] = {**base, "method": [rem, {"name": "retrain"}], "attack": [attack]}
            if base["forget"]["discovery"] == 1:
                runs[f"tied-{cell}"] = {**base, "model": setup.TIED, "method": tied}
        for q in () if self.small else DIAL:
            runs[f"dial-{q:g}"] = {
                **self._base(setup.HIGH, 0.5, presence=q),
                "method": [chosen["rem"], {"name": "retrain"}],
            }
        return list(runs.items())

    def _tied(self) -> list[str]:
        """Methods to run on models with example-tied dropout too."""
        return ["rem", "rem-npo", *(("scrub", "bad_teacher") if self.every else ())]

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Read everything from the scores of the runs."""
        runs = {name: OfSeed(work.record(name).table, seed) for name in basis["scores"]}
        cells = [runs[setup.cell(r, rate)] for rate in self.rates for r in setup.REGULARITIES]
        rows = [*basis["entries"], *setup.ABLATIONS[1:], "rem-ideal", "retrain", REFERENCE]
        measured: dict[str, Any] = {
            f"{what} {m}": [part(c, m) for c in cells] for m in (*rows, ORIGINAL) for what, part in PARTS
        }
        mean = {m: float(np.mean(measured[f"product {m}"])) for m in rows}
        others = [m for m in rows if m not in (*setup.ABLATIONS, "rem-ideal", REFERENCE)]
        measured |= with_error("rem_highest", {m: mean_gap([product_gap(c, "rem", m) for c in cells]) for m in others})
        measured["rem_never_collapses"] = min(
            ours / whole for ours, whole in zip(measured["product rem"], measured[f"product {REFERENCE}"], strict=True)
        )
        measured |= array("ablation_order", {m: mean[m] for m in setup.ABLATIONS})
        known = [i for i, rate in enumerate(np.repeat(self.rates, 3)) if rate < 1]
        gain = np.subtract(measured["product rem-ideal"], measured["product rem"])
        measured["ideal_bounds"] = float(np.mean(gain[known]))
        return measured | self._retrained(runs, measured) | self._baselines(measured) | self._beyond(runs)

    def _retrained(self, runs: Mapping[str, OfSeed], values: Mapping[str, Any]) -> dict[str, Any]:
        healed = dict(zip(self._cells(), values["healed retrain"], strict=True))
        most, least = max(self.rates), min(self.rates)
        lost = {r: healed[r, most] - healed[r, 0.5] for r in setup.REGULARITIES}
        whole = {r: healing(runs[setup.cell(r, most)], REFERENCE) for r in setup.REGULARITIES}
        measured: dict[str, Any] = {"trigger_is_abrupt": lost[setup.HIGH] - lost[setup.LOW]}
        measured |= array("retrain_heals_all_known", {r: healed[r, most] - whole[r] for r in setup.REGULARITIES})
        measured |= array(
            "retrain_needs_discovery", {r: healed[r, most] - healed[r, least] for r in setup.REGULARITIES}
        )
        if not self.small:
            dial = {m: {f"presence {q:g}": healing(runs[f"dial-{q:g}"], m) for q in DIAL} for m in ("retrain", "rem")}
            measured |= array("regularity_dial", dial["retrain"]) | {"dial rem": list(dial["rem"].values())}
        return measured

    def _baselines(self, values: Mapping[str, Any]) -> dict[str, Any]:
        cells = self._cells()
        measured = array(
            "npo_pays",
            {
                "healed": float(np.mean(np.subtract(values["healed rem-npo"], values[f"healed {ORIGINAL}"]))),
                "utility": float(np.mean(np.subtract(values["utility retrain"], values["utility rem-npo"]))),
            },
        )
        followers = [m for m in ("finetune", "scrub", "bad_teacher") if f"healed {m}" in values]
        ranks = {m: spearman(values[f"healed {m}"], values["healed retrain"]) for m in followers}
        measured |= array("retain_methods_follow", ranks)
        if "healed potion" in values:
            healed, utility = (
                dict(zip(cells, values[f"{what} potion"], strict=True)) for what in ("healed", "utility")
            )
            whole = dict(zip(cells, values["utility retrain"], strict=True))
            measured |= array(
                "potion_heals_triggers", {f"rate {rate:g}": healed[setup.HIGH, rate] for rate in self.rates}
            )
            measured["potion_breaks_on_labels"] = float(
                np.mean([utility[setup.LOW, rate] - whole[setup.LOW, rate] for rate in self.rates])
            )
        return measured

    def _beyond(self, runs: Mapping[str, OfSeed]) -> dict[str, Any]:
        all_known = {r: runs[f"attacked-{setup.cell(r, 1.0)}"] for r in setup.REGULARITIES}
        half_known = {r: runs[f"attacked-{setup.cell(r, 0.5)}"] for r in setup.REGULARITIES}
        confused = [runs[setup.cell(setup.MEDIUM, rate)] for rate in self.rates]
        tied = {r: runs[f"tied-{setup.cell(r, 1.0)}"] for r in setup.REGULARITIES}

        def helped(regularity: str) -> float:
            return healing(tied[regularity], KEPT) - healing(all_known[regularity], ORIGINAL)

        return {
            "tying_helps_labels": helped(setup.LOW),
            "tying_fails_triggers": helped(setup.HIGH),
            **array(
                "base_unlearns", {r: c.value(ORIGINAL, FORGET) - c.value("rem", FORGET) for r, c in all_known.items()}
            ),
            **with_error("utility_hides_harm", mean_gap([c.gap("rem", "retrain", CONFUSED) for c in confused])),
            **with_error("deletes_under_clean_attack", {r: c.gap("rem", attack=ATTACK) for r, c in all_known.items()}),
            **with_error(
                "deletes_under_corrupt_attack", {r: c.gap("rem", attack=ATTACK) for r, c in half_known.items()}
            ),
            "tied product": {
                m: {name: product(run, m) for name, run in runs.items() if name.startswith("tied-")}
                for m in (KEPT, *self._tied())
            },
        }

    def _cells(self) -> list[tuple[str, float]]:
        return [(r, rate) for rate in self.rates for r in setup.REGULARITIES]

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """The means of each method over the plane, example-tied dropout, and a map per method."""
        rows = [*basis["entries"], *setup.ABLATIONS[1:], "rem-ideal", "retrain", REFERENCE]

        def plane(what: str, model: str) -> np.ndarray[Any, Any]:
            values = np.mean(
                [np.asarray(measured[f"{what} {model}"], dtype=float) for measured in seeds.values()], axis=0
            )
            return np.asarray(values).reshape(len(self.rates), 3).T

        names = tuple(f"{rate:g}" for rate in self.rates)
        means = tuple(tuple(float(plane(what, m).mean()) for what, _ in PARTS) for m in rows)
        whole = Grid("Means over the plane", "", "", tuple(what for what, _ in PARTS), tuple(rows), means)
        maps = [
            Grid(
                f"Utility times healed: {m}",
                "share discovered",
                "",
                names,
                setup.REGULARITIES,
                _cells_of(plane("product", m)),
            )
            for m in rows
        ]
        tied = next(iter(seeds.values()))["tied product"]
        columns = tuple(name.removeprefix("tied-") for name in next(iter(tied.values())))
        values = tuple(
            tuple(float(np.mean([m["tied product"][row][f"tied-{c}"] for m in seeds.values()])) for c in columns)
            for row in tied
        )
        dropout = Grid("Utility times healed, trained with example-tied dropout", "", "", columns, tuple(tied), values)
        return [whole, dropout, *maps]


def healing(run: OfSeed, model: str) -> float:
    """Accuracy against the true labels on all corrupted examples."""
    return run.value(model, HEALED)


def product(run: OfSeed, model: str) -> float:
    """Utility times healed of one model; the study averages such products."""
    return run.value(model, TEST) * healing(run, model)


def product_gap(run: OfSeed, model: str, other: str) -> Gap:
    """The difference of two products; its error is that over test images, which all seeds share."""
    ours, theirs = (healing(run, m) for m in (model, other))
    tested = run.weighted([(ours, model), (-theirs, other)], TEST)
    return tested._replace(value=product(run, model) - product(run, other))


PARTS = (("healed", healing), ("utility", lambda run, model: run.value(model, TEST)), ("product", product))
"""The numbers of a model in each cell."""


def _cells_of(values: np.ndarray[Any, Any]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in values)
