"""Structural disentanglement: what bilinear layers recover, decouple, and let go in closed form (2602.05635).

Five networks of the same size learn operators: a bilinear layer that reads control and state on separate sides, one
that reads both on both sides, ReLU, GELU and SwiGLU. Measured are the recovered operator, rollouts, closed-form removal
with its predicted side effects, fine-tuning and relearning; gradient flow of modes; and a class of Fashion-MNIST.

Power of the primary claims was considered on the tuning seed 100, which is not reported. With 6 seeds, and 5 % shared
by three claims, a mean of 1.2 standard deviations over seeds passes (t = 2.9). On that seed the components of
`operator_recovered` were 1.3 to 5 decades (modular addition 0.0, so it is a secondary claim), those of `modes_decouple`
0.43, 0.011 and 0.019, and those of `collateral_predicted` below 1e-16. A seed took 80 s of one core, and takes
130 s with the claims that were added later (`costs.py`; claims.toml says which).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from expunge.base.part import Count, NonNegative
from expunge.base.seeds import derive
from expunge.blocks.bilinear import BilinearLayer
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Series
from expunge.studies.bilinear import modular, setup
from expunge.studies.bilinear.costs import removal_claims, structure_claims
from expunge.studies.bilinear.flow import correlated, flow
from expunge.studies.bilinear.garment import removed
from expunge.studies.bilinear.setup import FORGOTTEN, NETWORKS, RIVALS, LearningTask, Network
from expunge.studies.bilinear.structure import steps_to_learn
from expunge.study.claims import read_claims
from expunge.study.read import array, spearman
from expunge.study.study import Preset, Study, Work

SCALES = (1e-1, 1e-2, 1e-4)
HORIZONS = (1, 10, 100, 1000)
RELEARNED, PATIENCE, EVERY = 0.1, 1000, 10
"""Error at which a control counts as relearned, the most steps, and how often it is measured."""


@dataclass(frozen=True)
class BilinearStudy(Study):
    """Operators, modes and removals of bilinear layers."""

    cite: ClassVar[str] = "nema2026structural"
    paper: ClassVar[str] = "Structural Disentanglement in Bilinear MLPs, 2026"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset(
            (0,),
            {"steps": 40, "modular_steps": 60, "structure_steps": 20, "cycle": 10, "p": 11, "images": 300, "epochs": 2},
        ),
        "cpu": Preset((0, 1, 2, 3, 4, 5)),
        "long": Preset(tuple(range(8)), {"p": 97, "modular_steps": 5000, "steps": 6000, "cycle": 100}),
        "paper": Preset((0, 1, 2), lacks="the paper's tasks and settings, which could not be read"),
    }

    steps: Count = 3000
    """Training steps of each network on a task."""
    cycle: Count = 40
    """Length of the cycle."""
    p: Count = 31
    """Modulus."""
    modular_steps: Count = 2000
    """Training steps on modular addition, each over all training pairs."""
    decay: NonNegative = 0.3
    """Weight decay on modular addition."""
    structure_steps: Count = 800
    """Training steps of the networks of five architectures and three initial scales, and of two operations."""
    images: Count = 1500
    """Training images of Fashion-MNIST."""
    epochs: Count = 5
    """Epochs on them."""

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Train and measure everything of one seed."""
        torch.manual_seed(derive(seed, "networks"))
        generator = torch.Generator().manual_seed(derive(seed, "data"))
        tasks = setup.tasks(derive(seed, "tasks"), self.cycle)
        networks = {name: self._networks(task, generator) for name, task in tasks.items()}
        sums = {n: modular.trained(n, self.p, self.modular_steps, self.decay, generator) for n in NETWORKS}
        errors = {
            name: {n: setup.operator_error(net, task) for n, net in networks[name].items()}
            for name, task in tasks.items()
        }
        errors["sums"] = {n: modular.operator_error(net, self.p) for n, net in sums.items()}
        rollouts = {
            name: {
                n: [setup.rollout_error(net, task, steps, generator) for steps in HORIZONS]
                for n, net in networks[name].items()
            }
            for name, task in tasks.items()
        }
        recovered = {
            f"operator {task}, {n}": _decades(errors[task], n)
            for task in ("cycle", "so2", "so3", "se3")
            for n in setup.BILINEAR
        }
        recovered |= {
            f"rollout {task}": _decades({n: r[-1] for n, r in rollouts[task].items()}, "bilinear") for task in tasks
        }
        measured = array("operator_recovered", recovered)
        measured |= array("sums_recovered", {n: _decades(errors["sums"], n) for n in setup.BILINEAR})
        drifts = {task: math.log10(rollouts[task]["concatenated"][-1]) for task in ("so3", "se3", "cycle")}
        measured |= array("concatenated_drifts", drifts)
        measured |= self._decoupling(seed) | self._removals(tasks["so3"], networks["so3"], sums, generator)
        measured |= self._structure(tasks, networks, errors, rollouts, generator)
        garment = removed(self.images, self.epochs, derive(seed, "garment"))
        measured |= array(
            "garment_removed",
            {"no longer answered": 0.001 - garment["still answered"], "others": garment["change elsewhere"] + 0.001},
        )
        measured["layer_below_still_knows"] = garment["probe"]
        # Last, so that what was measured before these claims were added keeps its numbers.
        without = _without_control(networks["so3"]["bilinear"]).float()
        measured |= structure_claims(seed, tasks["so3"], self.structure_steps, without)
        measured |= removal_claims(seed, sums["bilinear"], tasks["so3"], self.p, self.structure_steps)
        return measured | {"errors": errors, "rollouts": rollouts}

    def _networks(self, task: LearningTask, generator: torch.Generator) -> dict[str, nn.Module]:
        controls, width, _ = task.operators.shape
        draw = setup.batches(task, generator, torch.ones(controls))
        return {n: setup.train(Network(n, controls, width, width, task.size), draw, self.steps) for n in NETWORKS}

    def _decoupling(self, seed: int) -> dict[str, Any]:
        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(derive(seed, "flow"))

        flows = {scale: flow(scale, generator()) for scale in SCALES}
        mixing = {scale: f.mixing for scale, f in flows.items()}
        moments = correlated(generator())
        mixed = flow(SCALES[-1], generator(), moments=moments).mixing
        u = torch.linalg.svd(flow(SCALES[-1], generator(), (2.0, 2.0, 1.0)).half()).U[:, 0].square()
        return {
            **array(
                "modes_decouple",
                {
                    "0.1 - 0.01": mixing[0.1] - mixing[0.01],
                    "0.01 - 0.0001": mixing[0.01] - mixing[0.0001],
                    "0.02 - off the law": 0.02 - flows[0.0001].off_law,
                },
            ),
            "correlated_inputs_mix": mixed - mixing[0.0001],
            **array(
                "degenerate_modes_are_planes",
                {"plane": 0.05 - float(1 - u[:2].sum()), "single": float(1 - u[:2].max()) - 0.05},
            ),
            "mixing": list(mixing.values()),
        }

    def _removals(
        self,
        task: LearningTask,
        networks: Mapping[str, nn.Module],
        sums: Mapping[str, Network],
        generator: torch.Generator,
    ) -> dict[str, Any]:
        table = sums["bilinear"].body
        assert isinstance(table, BilinearLayer)
        units, states = torch.eye(self.p), task.states(64, generator)
        kept = torch.eye(setup.CONTROLS)[[k for k in range(setup.CONTROLS) if k != FORGOTTEN]]
        before: Any = copy.deepcopy(networks["bilinear"]).double()
        after: Any = _without_control(before)
        collateral = {
            "control": modular.collateral(before.body, after.body, kept, states),
            "residue": modular.collateral(table, modular.residue_removed(table, 0), units, units),
            "frequency": modular.collateral(table, modular.frequency_removed(table), units, units),
        }
        errors = [setup.errors_by_control(net, _double(task), _seeded()) for net in (before, after)]
        allowed = {
            "forgotten": abs(errors[1][FORGOTTEN] - 1) / 1e-3,
            "retained": (setup.retained(errors[1]) - setup.retained(errors[0])) / 1e-6,
        }
        fresh = _relearn(Network("bilinear", setup.CONTROLS, 3, 3, task.size), task, generator)
        again = _relearn(after.float(), task, generator)
        return {
            **array("collateral_predicted", {name: abs(m - p) for name, (p, m) in collateral.items()}),
            "frequency_has_a_cost": collateral["frequency"][0],
            "fourier_pairs": modular.fourier_share(table),
            **array("closed_form_is_exact", allowed),
            "relearns_no_faster": math.log2(again / fresh),
            "collateral": {name: list(pair) for name, pair in collateral.items()},
        }

    def _structure(
        self,
        tasks: Mapping[str, LearningTask],
        networks: Mapping[str, Mapping[str, nn.Module]],
        errors: Mapping[str, Mapping[str, float]],
        rollouts: Mapping[str, Mapping[str, list[float]]],
        generator: torch.Generator,
    ) -> dict[str, Any]:
        """Fine-tuning to the output zero without retained data, and what the error of the operator says of it."""
        damage = {}
        for name in ("so2", "so3", "se3"):
            for n, network in networks[name].items():
                tuned = setup.forget(copy.deepcopy(network), tasks[name], min(self.steps, 300), generator)
                damage[name, n] = setup.retained(setup.errors_by_control(tuned, tasks[name], _seeded()))
        error = [errors[name][n] for name, n in damage]
        ranks = {
            "rollout": spearman(error, [rollouts[name][n][2] for name, n in damage]),
            "fine-tuning": spearman(error, list(damage.values())),
        }
        return {
            **array("structure_decides", ranks),
            "gradients_damage_bilinear_too": damage["so3", "bilinear"],
            "damage": {f"{name} {n}": value for (name, n), value in damage.items()},
        }

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """Rollouts of each task, geometric means over seeds."""
        charts: list[Figure] = []
        for task in ("so2", "so3", "se3", "cycle"):
            lines = []
            for n in NETWORKS:
                values = np.array([m["rollouts"][task][n] for m in seeds.values()])
                lines.append(Series(n, tuple(map(math.log10, HORIZONS)), tuple(np.log10(values + 1e-9).mean(0))))
            charts.append(Chart(f"Rollouts, {task}", "steps, log10", "relative error, log10", tuple(lines)))
        return charts


def _decades(errors: Mapping[str, float], ours: str) -> float:
    """Decimal logarithm of the rivals' smallest error, divided by ours; errors below 1e-9 are rounding."""
    return math.log10(max(min(errors[n] for n in RIVALS), 1e-9) / max(errors[ours], 1e-9))


def _without_control(network: nn.Module) -> nn.Module:
    """The network without one control, in closed form, with new factors."""
    edited = copy.deepcopy(network)
    layer: Any = edited.body
    unit = torch.eye(setup.CONTROLS, dtype=torch.float64)[:, FORGOTTEN : FORGOTTEN + 1]
    whole = torch.eye(layer.right.in_features, dtype=torch.float64)
    for direction in torch.eye(layer.out.out_features, dtype=torch.float64):
        layer.remove_subspace(direction, unit @ unit.T, whole)
    layer.refactor()
    return edited


def _relearn(network: nn.Module, task: LearningTask, generator: torch.Generator) -> int:
    return steps_to_learn(network, task, generator, below=RELEARNED, most=PATIENCE, every=EVERY)


def _double(task: LearningTask) -> LearningTask:
    return LearningTask(task.operators.double(), lambda n, g: task.states(n, g).double(), task.size)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
