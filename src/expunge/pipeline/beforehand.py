"""What is judged before any method runs: whether the originals know the forget set better than the references do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from expunge.base.memory import MemoryStore
from expunge.base.store import Store
from expunge.evidence.beforehand import nothing_to_forget
from expunge.evidence.scores import loads
from expunge.evidence.table import ORIGINAL, REFERENCE, Measured, Table
from expunge.pipeline.outstanding import leading_to
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage import SCORES


@dataclass
class Beforehand:
    """The audits of originals and references before any attack; all methods wait for them.

    Args:
        plan: The plan of the run.
        store: Where outputs go.
        say: Called with the warning, before any method starts, if there is nothing to forget.
    """

    plan: Plan
    store: Store | MemoryStore
    say: Callable[[str], object]
    warning: str = ""

    @cached_property
    def stages(self) -> list[Stage]:
        """The audits, and the models that they measure. Audits with shadow models run methods, so they come later."""
        if not self.plan.methods:
            return []
        return leading_to([stage for stage in self.plan.stages if _is_first(stage)], self.plan)

    def judge(self) -> None:
        """Say it if there is nothing to forget; the outputs of `stages` are in the store."""
        measured = [
            Measured(stage.model, stage.seed or 0, None, scores)
            for stage in self.stages
            if stage.kind == "audit"
            for scores in loads(self.store.read(stage.key, SCORES))
        ]
        models = [model for model in self.plan.models if model in (ORIGINAL, REFERENCE)]
        one = self.plan.about_one_model
        table = Table(measured, models, self.plan.spec.seeds, (), about_one_model=one)
        self.warning = nothing_to_forget(table)
        if self.warning:
            self.say(self.warning)


def _is_first(stage: Stage) -> bool:
    shadows = {"knew", "never"} & stage.inputs.keys()
    return stage.kind == "audit" and stage.attack is None and stage.model in (ORIGINAL, REFERENCE) and not shadows
