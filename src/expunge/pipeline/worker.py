"""Run the stages of a plan in one process, and load their inputs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from expunge.base.errors import ExpungeError, RunError
from expunge.base.memory import MemoryStore
from expunge.base.store import Store
from expunge.core import checkpoint
from expunge.core.case import Case, Recipe, Shadows
from expunge.core.device import computing, device_name
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage import STATISTICS, WEIGHTS
from expunge.pipeline.stage_kind import Output, kind_of


@dataclass
class Worker:
    """The plan and store of a run, with the problems made so far."""

    plan: Plan
    store: Store | MemoryStore
    _problems: dict[int | None, Problem] = field(default_factory=dict)

    def run(self, stage: Stage) -> dict[str, Any]:
        """Compute a stage and store its output.

        Args:
            stage: The stage; its inputs are in the store.

        Returns:
            Its name, cost (seconds and per-example gradients), device and precision.

        Raises:
            ExpungeError: The stage failed, and the message names the stage; or an input file was changed while the
                stage ran, and nothing is stored.
        """
        torch.set_num_threads(self.plan.spec.threads)
        start, kind = time.perf_counter(), kind_of(stage.kind)
        # Diagnostics measure curvature, which needs more digits than bfloat16 has.
        precision = "float32" if stage.kind == "diagnostic" else self.plan.spec.precision
        try:
            # The user's parts may draw from the global generators.
            with computing(precision), forked(self.plan.seeds.stage(stage)):
                output = kind.run(self, stage)
        except ExpungeError as error:
            raise type(error)(
                error.finding,
                where=f"{stage.name}: {error.where}" if error.where not in ("", stage.name) else stage.name,
                allowed=error.allowed,
                remedy=error.remedy,
            ) from None
        _check_files(kind.written(self.plan), stage, output)
        seconds = round(time.perf_counter() - start, 3)
        ran_on = {"device": device_name(self.plan.device), "precision": precision}
        facts = {"stage": stage.name, "gradients": output.gradients, "seconds": seconds, **ran_on}
        facts |= {} if output.changed is None else {"changed": output.changed}
        facts |= {"kept": output.kept} if output.kept else {}
        facts |= {} if output.merging is None else {"merging": output.merging}
        # The key names contents that were hashed when the plan was made. The stage may have read its files later.
        self.plan.inputs.refuse_changes()
        self.store.put(stage.key, output.files, facts)
        return facts

    def problem(self, stage: Stage) -> Problem:
        """The problem of the stage's seed."""
        if stage.seed not in self._problems:
            assert stage.seed is not None
            measured = self._tensors(stage.input("measured")) if "measured" in stage.inputs else {}
            self._problems[stage.seed] = self.plan.problem(stage.seed, measured)
        return self._problems[stage.seed]

    def model(self, key: str, problem: Problem) -> nn.Module:
        """The stored model with this key, in evaluation mode."""
        content, where = self.store.read(key, WEIGHTS), self.store.place(key, WEIGHTS)
        return checkpoint.restore(self.plan.fresh(self.plan.by_key[key], problem.data), content, where).eval()

    def model_and_original(self, stage: Stage) -> tuple[nn.Module, nn.Module]:
        """The stage's model and the original of its case, loaded once if they are the same."""
        problem, key, original = self.problem(stage), stage.input("model"), stage.input("original")
        model = self.model(key, problem)
        return model, model if key == original else self.model(original, problem)

    def models(self, keys: Iterable[str], problem: Problem) -> list[nn.Module]:
        """The stored models with these keys."""
        return [self.model(key, problem) for key in keys]

    def case(self, stage: Stage, original: nn.Module, shadows: Shadows | None = None) -> Case:
        """The case that a part of this stage works on."""
        problem = self.problem(stage)
        return Case(self.plan.seeds.case(stage), problem, original, self.recipe(problem), shadows=shadows)

    def recipe(self, problem: Problem) -> Recipe | None:
        """How models are trained; `None` if nobody knows."""
        return self.plan.recipe(problem.data) if self.plan.trains else None

    def statistics(self, stage: Stage) -> dict[str, Mapping[str, Tensor]]:
        """Keywords for the call of the stage's part: its statistics, if it has any."""
        return {"statistics": self._tensors(stage.input("statistics"))} if "statistics" in stage.inputs else {}

    def _tensors(self, key: str) -> dict[str, Tensor]:
        return load_tensors(self.store.read(key, STATISTICS))


def _check_files(declared: Mapping[str, str | None], stage: Stage, output: Output) -> None:
    if output.files.keys() != declared.keys():
        raise RunError(
            f"it wrote {', '.join(sorted(output.files)) or 'nothing'}",
            where=stage.name,
            allowed=f"the files that its kind names: {', '.join(sorted(declared)) or 'none'}",
        )
