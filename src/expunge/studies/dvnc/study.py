"""Discrete-valued neural communication: does it generalise better, and can it be deleted by codes (2107.02367).

A graph net learns pushes of five objects in a grid, and recurrent modules learn to add; all variants of a seed start
from the same weights and see the same data, with codes in different places. Rates and numbers of steps were chosen on
seed 100, on four objects, which no claim reads; those of the adding task were set without a search. How pictures are
asked about, and rate and steps of the continuous transformer, were chosen on seed 100, on six objects.

`cpu` left the primary claims open (seeds 0 to 5). `long` is an independent replication: the same rules and the same
sizes on six seeds that `cpu` does not use, declared after that look. It also measures what `every` says.

Small-scale re-implementation: slots instead of images, nets of 8 to 32 units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from expunge.base.part import Count, Positive
from expunge.base.seeds import derive
from expunge.blocks.codebook import codebook_layers
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Series
from expunge.numerics.communication import continuous_bound, discrete_bound, effective_dimension
from expunge.studies.dvnc import adding, clevr, pushes, theory
from expunge.studies.dvnc.dial import dialled
from expunge.studies.dvnc.digits import deleted, spread
from expunge.studies.dvnc.setup import CONTINUOUS, FOUR, ONE, PRIMARY, Variant
from expunge.study.claims import read_claims
from expunge.study.read import array
from expunge.study.study import Preset, Study, Work

FEWER = (3, 2)
"""Objects outside the training distribution; 4 was for choosing."""
ELSEWHERE = tuple(Variant(f"4 heads, {place}", 4, place=place) for place in ("edges", "inputs", "updates"))
SWEEP = (
    Variant("2 heads", 2), Variant("8 heads", 8), Variant("8 codes", 4, codes=8), Variant("64 codes", 4, codes=64)
)  # fmt: skip
FEW = Variant("2 codes", 4, codes=2)
RANDOM = tuple(Variant(kind, 4, kind=kind) for kind in ("gumbel", "decoupled_st"))


@dataclass(frozen=True)
class DvncStudy(Study):
    """Codes in communication: generalisation, noise, theory and deletion."""

    cite: ClassVar[tuple[str, ...]] = ("liu2021discrete", "goyal2021recurrent", "kipf2020contrastive")
    paper: ClassVar[str] = "Discrete-Valued Neural Communication, 2021"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0,), {"steps": 10, "seen": 200, "additions": 2, "length": 4, "tests": 6, "epochs": 3}),
        "cpu": Preset(tuple(range(6)), {"relations": True}),
        "long": Preset(tuple(range(6, 12)), {"every": True}),
        "paper": Preset((0, 1, 2), lacks="images of shapes, Atari and Sort-of-CLEVR, and nets of 300 to 512 units"),
    }

    steps: Count = 300
    """Training steps of the graph nets."""
    seen: Count = 2000
    """Transitions to train on."""
    rate: Positive = 3e-3
    """Adam's step size for the graph nets."""
    additions: Count = 250
    """Training steps on the adding task."""
    length: Count = 8
    """Length of its training sequences."""
    adding_rate: Positive = 1e-2
    """Adam's first step size for it."""
    tests: Count = 30
    """Test episodes of ten steps."""
    epochs: Count = 15
    """Epochs of the classifiers of digits."""
    every: bool = False
    """Whether to measure other sizes of the codebook, and random codes on the adding task."""
    relations: bool = False
    """Whether to measure Sort-of-CLEVR."""
    asked: Count = 600
    """Training steps of the transformers, each on 64 fresh pictures."""
    picture_width: Count = 32
    """Width of the transformer."""
    picture_rate: Positive = 2e-3
    """Adam's largest step size for it."""

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Everything of one seed."""
        pushed, summed = self._pushes(seed), self._adding(seed)
        torch.manual_seed(derive(seed, "theory"))
        both = {"pushes": pushed.pop("heads"), "adding": summed["4 heads"] - summed["1 head"]}
        measured: dict[str, Any] = {
            **pushed,
            "adding_generalises": summed["4 heads"],
            **array("heads_beat_one", both),
            **self._vectors(seed),
            **self._deletion(seed),
            **self._dial(seed),
            "adding": summed,
        }
        if self.every:
            beaten = {name: summed["4 heads"] - summed[name] for name in ("gumbel", "decoupled_st")}
            measured |= array("vector_codes_beat_random_ones", beaten)
        return measured | (self._clevr(seed) if self.relations else {})

    def _pushes(self, seed: int) -> dict[str, Any]:
        variants = [*PRIMARY, *ELSEWHERE, *((*SWEEP, FEW) if self.every else ())]
        names = [variant.name for variant in variants]
        torch.manual_seed(derive(seed, "graph"))
        nets = pushes.trained(variants, self.seen, self.steps, self.rate, derive(seed, "pushes"))
        read: dict[tuple[int, int], dict[str, dict[str, float]]] = {}
        for objects in (pushes.TRAINED, *FEWER):
            generator = torch.Generator().manual_seed(derive(seed, "test", objects))
            data = pushes.episodes(self.tests, 10, objects, generator)
            for steps in (1, 5):
                ranks = pushes.ranks(nets, data, steps).double()
                rows = {"hits": (ranks == 1).double().mean(1), "mrr": (1 / ranks).mean(1)}
                read[objects, steps] = {what: dict(zip(names, v.tolist(), strict=True)) for what, v in rows.items()}

        def over(name: str, other: str, objects: int, steps: int = 1, what: str = "hits") -> float:
            return read[objects, steps][what][name] - read[objects, steps][what][other]

        def mean(name: str, other: str) -> float:
            return float(np.mean([over(name, other, objects) for objects in FEWER]))

        four, plain = FOUR.name, CONTINUOUS.name
        better = {
            f"{title}, {n} objects": over(four, plain, n, what=what)
            for title, what in (("HITS@1", "hits"), ("MRR", "mrr"))
            for n in FEWER
        }
        at_home = over(four, plain, pushes.TRAINED)
        measured = array("pushes_generalise", better) | {"heads": mean(four, ONE.name)}
        measured |= array("five_steps", {f"{n} objects": over(four, plain, n, 5) for n in FEWER})
        measured |= array("gap_is_smaller", {f"{n} objects": over(four, plain, n) - at_home for n in FEWER})
        measured |= array("communication_is_the_place", {v.place: mean(four, v.name) for v in ELSEWHERE})
        if self.every:
            measured |= array("sizes_matter_little", {v.name: mean(v.name, plain) for v in SWEEP})
            few = {"continuous": mean(FEW.name, plain), "16 codes": mean(FEW.name, four)}
            measured |= array("few_messages_generalise", few)
        table = {f"{n} objects, {steps} steps": v["hits"] for (n, steps), v in read.items()}
        return measured | self._messages(nets, seed) | {"hits": table}

    def _messages(self, nets: pushes.GraphNets, seed: int) -> dict[str, Any]:
        """Noise on the messages of the trained nets, their dimension, and how far samples of them deviate."""
        generator = torch.Generator().manual_seed(derive(seed, "messages"))
        data = pushes.episodes(max(self.tests * 5, 50), 10, pushes.TRAINED, generator)
        states, actions = data.states[:, :-1].flatten(0, 1), data.actions.flatten()
        with torch.no_grad():
            encoded = nets.encode(states)
            sums = nets.messages(encoded).flatten(1, 2)
            received: Tensor = nets.codes["messages"](sums)
            clean = nets.step(encoded, actions)
            nets.noise = 0.1
            noisy = nets.step(encoded, actions)
            nets.noise = 0.0
            size = (clean - encoded).flatten(1).square().sum(1).sqrt()
            change = (noisy - clean).flatten(1).square().sum(1).sqrt() / size
        layer = codebook_layers(nets)["codes.messages.layers.2"]
        cells = layer.indices(sums[2])
        shares, slope = theory.deviations(cells, FOUR.heads, FOUR.codes, generator)
        n, width = theory.SIZES[-1], pushes.HIDDEN
        return {
            "noise_is_absorbed": math.log10(float(change[0] / change[2].clamp(min=1e-6))),
            "dimension_is_smaller": math.log2(effective_dimension(received[0]) / effective_dimension(received[2])),
            **array("bound_holds", dict(zip(map(str, theory.SIZES), shares, strict=True))),
            "deviation_falls": slope,
            "bound_is_smaller": discrete_bound(n, FOUR.heads, FOUR.codes) / continuous_bound(n, width),
            "perplexity": layer.perplexity(),
            "messages that occur": len(cells.unique(dim=0)),
        }

    def _adding(self, seed: int) -> dict[str, float]:
        """Decades of error on longer sequences, of the continuous net over each other."""
        variants = [*PRIMARY, *(RANDOM if self.every else ())]
        torch.manual_seed(derive(seed, "modules"))
        nets = adding.trained(variants, self.additions, self.length, self.adding_rate, derive(seed, "adding"))
        errors = adding.errors(nets, 50 * self.tests, 2 * self.length, derive(seed, "longer"))
        home = adding.errors(nets, 50 * self.tests, self.length, derive(seed, "same"))
        decades = {v.name: math.log10(errors[0] / e) for v, e in zip(variants, errors, strict=True)}
        decades |= {f"error {v.name}": e for v, e in zip(variants, errors, strict=True)}
        return decades | {f"error at home {v.name}": e for v, e in zip(variants, home, strict=True)}

    def _vectors(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(derive(seed, "vectors"))
        kept = {sizes: theory.retained(*sizes, generator) for sizes in ((1, 64), (4, 64), (4, 4))}
        without, coded = theory.retrieval(4, 64, generator)
        differences = {"4 heads over 1": kept[4, 64] - kept[1, 64], "64 codes over 4": kept[4, 64] - kept[4, 4]}
        return array("heads_retain_variance", differences) | {"attention_retrieves": coded - without}

    def _deletion(self, seed: int) -> dict[str, Any]:
        read = deleted(self.epochs, derive(seed, "digits"))
        return {
            "own_codebooks_cost_less": read["shared loss"] - read["own loss"],
            **array("sender_still_knows", spread(read, "sender")),
            "class_is_relearned_sooner": read["own relearned"],
            "pairs_cost_less_than_codes": read["own loss"] - read["pairs loss"],
            "deletion": read,
        }

    def _dial(self, seed: int) -> dict[str, Any]:
        read = dialled(self.epochs, derive(seed, "dial"))
        return {
            "shared_codes_transfer": read["shared transfer"] - read["own transfer"],
            "own_codebooks_cost_less_at_equal_forgetting": read["shared loss"] - read["own loss"],
            "sharing_costs_not_size": read["as many loss"] - read["own loss"],
            "dial": read,
        }

    def _clevr(self, seed: int) -> dict[str, Any]:
        read: dict[str, dict[int, Mapping[str, float]]] = {}
        for variant in PRIMARY:
            sizes = (variant.heads, self.picture_width, variant.codes, self.asked, self.picture_rate)
            model = clevr.trained(*sizes, derive(seed, "pictures"))
            read[variant.name] = {
                n: clevr.accuracy(
                    model,
                    clevr.questions(100 * self.tests, n, torch.Generator().manual_seed(derive(seed, "questions", n))),
                )
                for n in (clevr.TRAINED, *clevr.OTHERS)
            }

        def over(other: Variant, objects: int) -> dict[str, float]:
            ours, theirs = read[FOUR.name][objects], read[other.name][objects]
            return {arity: ours[arity] - theirs[arity] for arity in ("ternary", "binary")}

        def elsewhere(other: Variant) -> dict[str, float]:
            return {f"{n} objects": float(np.mean([*over(other, n).values()])) for n in clevr.OTHERS}

        return {
            **array("relations_are_answered", over(CONTINUOUS, clevr.TRAINED)),
            **array("relations_among_other_numbers", elsewhere(CONTINUOUS)),
            **array("relations_need_heads", elsewhere(ONE)),
            "accuracies": {name: {str(n): dict(row) for n, row in rows.items()} for name, rows in read.items()},
        }

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """HITS@1 after one step against the number of objects, means over seeds."""
        tables: Sequence[Mapping[str, Mapping[str, float]]] = [measured["hits"] for measured in seeds.values()]
        objects = (*reversed(FEWER), pushes.TRAINED)
        lines = []
        for name in tables[0][f"{pushes.TRAINED} objects, 1 steps"]:
            values = [float(np.mean([table[f"{n} objects, 1 steps"][name] for table in tables])) for n in objects]
            lines.append(Series(name, tuple(map(float, objects)), tuple(values)))
        return [Chart("Pushes after one step, trained on five objects", "objects", "HITS@1", tuple(lines))]
