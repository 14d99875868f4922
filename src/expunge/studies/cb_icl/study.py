"""Concept-based in-context learning: when a few demonstrations suffice, and what they bring back (2509.20882).

Synthetic questions have known probabilities, so that risk can be compared with theory in all regimes. Digits and
docstrings of Python's library show accuracy by number, dimension and choice of demonstrations; their embeddings are
pixels and TF-IDF with SVD. A small GPT learns made-up people; its checkpoints, and methods that unlearn half of the
people or one digit, are read from context. `prompting.py` has the part that needs a large language model.

The paper's benchmarks, models and constants could not be read or run here. Small-scale re-implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from expunge.base.part import Count
from expunge.base.seeds import derive
from expunge.core.text_embeddings import tfidf
from expunge.data.digits import Digits
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Series
from expunge.studies.cb_icl import forgetting, readings, recall, synthetic
from expunge.studies.cb_icl.docstrings import docstrings
from expunge.studies.cb_icl.readings import Labelled
from expunge.study.claims import read_claims
from expunge.study.read import array, spearman
from expunge.study.study import Preset, Study, Work

NUMBERS, WIDTHS = (32, 64, 128, 256), (5, 9, 17, 33)
"""Demonstrations n, and coordinates K, of complete learners."""
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)
"""Directions of real embeddings."""
SHOWN = (10, 20, 40, 80, 160)
"""Demonstrations of real data."""
RIDGE = 0.1
CHOSEN = 20
"""Demonstrations of each query where they are chosen."""


@dataclass(frozen=True)
class CbIclStudy(Study):
    """Risk, choice and knowledge of in-context learners in closed form, and recovery of what was forgotten."""

    cite: ClassVar[str] = "tang2025concept"
    paper: ClassVar[str] = "Concept-Based In-Context Learning, 2025"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0,), {"draws": 2, "queries": 10, "sets": 20, "epochs": 2, "people": False}),
        "cpu": Preset((0, 1, 2, 3, 4, 5)),
        "long": Preset(
            tuple(range(12)),
            {"draws": 2000, "sets": 1000, "queries": 400, "person_epochs": 80},
        ),
        "paper": Preset((0,), lacks="MMLU, MMLU-Pro, GPQA and the paper's language models"),
    }

    draws: Count = 200
    """Draws of demonstrations and answers in each cell."""
    sets: Count = 300
    """Random sets of demonstrations whose similarities are compared."""
    queries: Count = 150
    """Queries of real data."""
    epochs: Count = 15
    """Epochs on digits."""
    person_epochs: Count = 30
    """Epochs on people."""
    people: bool = True
    """Whether to train and unlearn people."""

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Everything of one seed."""
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(derive(seed, "cb_icl"))
        return {
            **self._complete(generator),
            **self._regimes(generator),
            **self._similarity(generator),
            **self._real(generator),
            **self._forgotten(seed),
        }

    def _complete(self, generator: torch.Generator) -> dict[str, Any]:
        cells, worlds = {}, {width: synthetic.world(width, generator) for width in WIDTHS}
        for width, whole in worlds.items():
            for count in NUMBERS:
                if count * (synthetic.OPTIONS - 1) >= 2 * (width - 1):
                    cells[width, count] = synthetic.risks(whole, width, count, self.draws, generator)
        names = {cell: f"K = {cell[0]}, n = {cell[1]}" for cell in cells}
        ratios = {names[cell]: of.measured / of.predicted for cell, of in cells.items()}
        slack = {names[cell]: float(np.log10(of.bound / of.measured)) for cell, of in cells.items()}
        by_number = [cells[17, count].measured for count in NUMBERS]
        by_width = [cells[width, 64].measured for width in WIDTHS]
        return {
            **array("risk_follows_curve", ratios),
            **array("risk_below_bound", slack),
            "falls_as_one_over_n": float(np.polyfit(np.log(NUMBERS), np.log(by_number), 1)[0]),
            "rises_with_dimension": float(np.polyfit(np.log(np.array(WIDTHS) - 1), np.log(by_width), 1)[0]),
            "by_number": by_number,
            "predicted_by_number": [cells[17, count].predicted for count in NUMBERS],
            "bound_by_number": [cells[17, count].bound for count in NUMBERS],
        }

    def _regimes(self, generator: torch.Generator) -> dict[str, Any]:
        whole = synthetic.world(33, generator)
        few = {f"n = {n}": synthetic.risks(whole, 33, n, 2 * self.draws, generator) for n in (2, 4, 8)}
        part = {f"n = {n}": synthetic.risks(whole, 9, n, self.draws, generator) for n in (16, 64, 256, 1024)}
        ratios = {f"insufficient, {name}": of.measured / of.predicted for name, of in few.items()}
        ratios |= {f"incomplete, {name}": of.measured / of.predicted for name, of in part.items()}
        # 11 demonstrations of 4 options: 33 equations for 32 unknowns.
        spike = {n: synthetic.risks(whole, 33, n, self.draws, generator).measured for n in (4, 11, 32)}
        eased = synthetic.risks(whole, 33, 11, self.draws, generator, ridge=RIDGE).measured
        peak = {"a third": np.log10(spike[11] / spike[4]), "three times": np.log10(spike[11] / spike[32])}
        return {
            **array("regimes_follow_theory", ratios),
            "incomplete_stays": part["n = 1024"].measured / synthetic.residual(whole, 9),
            **array("double_descent", peak),
            "ridge_ends_the_peak": float(np.log10(spike[11] / eased)),
        }

    def _similarity(self, generator: torch.Generator) -> dict[str, Any]:
        whole = synthetic.world(17, generator)
        table = synthetic.similarities(whole, 17, 16, self.sets, generator)
        ranks = {name: spearman(table[name], table["risk"]) for name in ("trace", "lambda")}
        return {
            **array("similarity_ranks_risk", ranks),
            "trace_beside_lambda": ranks["trace"] - ranks["lambda"],
        }

    def _real(self, generator: torch.Generator) -> dict[str, Any]:
        greedy, random = synthetic.chosen_and_random(synthetic.world(17, generator), 17, 16, generator)
        synthetic_gain = float(np.log10(random / greedy))
        table = {data.name: data for data in self._data(generator)}
        accuracy, risk, share = {}, {}, {}
        for name, data in table.items():
            for dimension in DIMENSIONS:
                share[name, dimension] = readings.share_of_knowledge(data, dimension, RIDGE)
                for count in SHOWN:
                    cell = (data, dimension, count, 4, RIDGE, generator)
                    accuracy[name, dimension, count] = readings.accuracy(*cell)
                    risk[name, dimension, count] = readings.predicted_risk(*cell)
        ways = {name: readings.by_choice(data, 16, CHOSEN, RIDGE, generator) for name, data in table.items()}
        gains = {
            way: {name: of[way] - of["random"] for name, of in ways.items()} for way in ("greedy", "cosine", "diverse")
        }
        middle = SHOWN[2]
        interior = {}
        for name in table:
            inner = [accuracy[name, dimension, middle] for dimension in DIMENSIONS[1:-1]]
            ends = [accuracy[name, dimension, middle] for dimension in (DIMENSIONS[0], DIMENSIONS[-1])]
            interior[name] = max(inner) - max(ends)
        cells = [(d, n) for d in DIMENSIONS for n in SHOWN]
        ranks = {
            name: spearman([-risk[name, d, n] for d, n in cells], [accuracy[name, d, n] for d, n in cells])
            for name in table
        }
        many = {
            name: spearman(
                [share[name, dimension] for dimension in DIMENSIONS],
                [accuracy[name, dimension, SHOWN[-1]] for dimension in DIMENSIONS],
            )
            for name in table
        }
        plain = {n: readings.accuracy(of, 64, 40, 4, 0.0, generator) for n, of in table.items()}
        eased = {n: readings.accuracy(of, 64, 40, 4, RIDGE, generator) for n, of in table.items()}
        measured: dict[str, Any] = array("chosen_beat_random", {"synthetic": synthetic_gain, **gains["greedy"]})
        measured |= array("neighbours_beat_random", gains["cosine"])
        measured |= array("diverse_beat_random", gains["diverse"])
        others = {
            f"{way}, {name}": of["greedy"] - of[way] for name, of in ways.items() for way in ("cosine", "diverse")
        }
        measured |= array("greedy_beats_neighbours", others)
        measured |= array("interior_dimension", interior)
        measured |= array("predicted_risk_ranks_accuracy", ranks)
        measured |= array("knowledge_ranks_embeddings", many)
        measured |= array("ridge_helps", {name: eased[name] - plain[name] for name in table})
        return measured | {
            "by_dimension": {name: [accuracy[name, d, middle] for d in DIMENSIONS] for name in table},
            "ways": ways,
        }

    def _data(self, generator: torch.Generator) -> list[Labelled]:
        digits = Digits()()
        texts, labels = docstrings()
        order = torch.randperm(len(texts), generator=generator)[: 600 + self.queries]
        words = [texts[i] for i in order.tolist()]
        # Fitted to the pool alone: the first texts, which `split` may not move.
        rows = tfidf(words[:300])(words)
        sizes = (300, 300, self.queries)
        return [
            readings.split("digits", digits.inputs.flatten(1), digits.targets, sizes, generator),
            readings.in_order("docstrings", rows, labels[order], sizes),
        ]

    def _forgotten(self, seed: int) -> dict[str, Any]:
        digit = forgetting.digit(seed, self.epochs)
        table = {"digit": forgetting.readings(digit, seed, forgetting.original(digit, seed))}
        measured: dict[str, Any] = {}
        if self.people:
            persons = forgetting.persons(seed, self.person_epochs)
            gpt, checkpoints = recall.trained(persons, seed)
            table["people"] = forgetting.readings(persons, seed, gpt)
            ranks = ([point.knowledge for point in checkpoints], [point.accuracy for point in checkpoints])
            measured = {
                "knowledge_ranks_checkpoints": spearman(*ranks),
                "checkpoints": list(map(list, checkpoints)),
                "comes_back_own": _most(table["people"], "in_context_own"),
                "retrain_is_not_accused_own": forgetting.residual(table["people"], "retrain", "in_context_own"),
            }
        back = {name: _most(of, "in_context") for name, of in table.items()}
        chosen = {name: _most(of, "in_context_chosen") for name, of in table.items()}
        control = {name: forgetting.residual(of, "retrain", "in_context") for name, of in table.items()}
        return {
            **array("comes_back", back),
            **array("comes_back_chosen", chosen),
            **array("retrain_is_not_accused", control),
            **measured,
            "forgetting": table,
        }

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """Risk by number of demonstrations beside theory, and accuracy by dimension."""

        def mean(key: str) -> tuple[float, ...]:
            return tuple(np.mean([measured[key] for measured in seeds.values()], axis=0))

        lines = [Series(name, NUMBERS, mean(key)) for name, key in _CURVES.items()]
        figures: list[Figure] = [
            Chart("Risk, complete and sufficient (K = 17)", "demonstrations", "risk", tuple(lines), log_x=True)
        ]
        by_dimension = [
            Series(name, DIMENSIONS, tuple(np.mean([m["by_dimension"][name] for m in seeds.values()], axis=0)))
            for name in ("digits", "docstrings")
        ]
        title = f"Accuracy after {SHOWN[2]} demonstrations"
        return [*figures, Chart(title, "dimension", "accuracy", tuple(by_dimension), log_x=True)]


_CURVES = {"measured": "by_number", "theory": "predicted_by_number", "trace bound": "bound_by_number"}


def _most(table: Mapping[str, forgetting.Reading], metric: str) -> float:
    """Largest residual of a method that accuracy calls forgotten; 0 if it calls none so."""
    names = forgetting.called_forgotten(table)
    return max((forgetting.residual(table, name, metric) for name in names), default=0.0)
