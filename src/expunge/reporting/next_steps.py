"""What to do next: which model may be shipped, why the others may not, and a command for each of them.

Everything follows from the record: from verdicts, their reasons and the settings of the methods. A command is proposed
only where it can change the verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from expunge.evidence.table import REFERENCE
from expunge.reporting.record import Json, Run
from expunge.reporting.steps import OTHERS, Step, is_control, step_of, time_text
from expunge.reporting.text import knowledge_key

WORDS = {
    "dormant": ("hides what it knows: an attack brings it back", "hide what they know: an attack brings it back"),
    "incomplete": ("still knows what it should have forgotten", "still know what they should have forgotten"),
    "damaged": ("lost too much of what it should have kept", "lost too much of what they should have kept"),
    "over-forgotten": (
        "does worse on the forget set than a model that never saw it, which gives these examples away",
        "do worse on the forget set than a model that never saw it, which gives these examples away",
    ),
    "inconclusive": ("may have forgotten: this run cannot tell", "may have forgotten: this run cannot tell"),
}
"""Why one model, or several, may not be shipped, by headline."""


@dataclass(frozen=True)
class Advice:
    """The first screen of the page."""

    ship: list[str]
    """Labels of the models that may be shipped, without controls."""
    answer: str
    """Whether a model may be shipped, in a sentence."""
    not_shipped: list[Json]
    """Models that may not be shipped, by headline: `flag`, `models`, `why`."""
    best: str
    """The model that `step` is about; empty if it is about none."""
    step: Step


def advice(run: Run) -> Advice:
    """Which model may be shipped, why the others may not, and the next command."""
    judged = [verdict for verdict in run.verdicts if not is_control(run, verdict["model"])]
    ship = [verdict["model"] for verdict in judged if verdict["verdict"] == "erased"]
    best = ship[0] if ship else _nearest(run, judged)
    by_model = {verdict["model"]: verdict for verdict in run.verdicts}
    step = step_of(run, by_model[best]) if best else _without_candidate(run)
    return Advice(ship, _answer(run, judged, ship), _not_shipped(judged), best, step)


def _answer(run: Run, judged: list[Json], ship: list[str]) -> str:
    if ship:
        return f"Yes: {', '.join(ship)}. As far as this run can see, it forgot as retraining does, and is as useful."
    if not judged:
        return "There is no unlearned model to ship."
    if not run.retrained:
        return "No. Without retrained models to compare with, no model can be shown to have forgotten."
    count = "The model is not" if len(judged) == 1 else f"None of the {len(judged)} unlearned models is"
    return f"No. {count} shown to have forgotten{_retraining(run)}"


def _retraining(run: Run) -> str:
    """What always may be shipped, where models can be retrained: a retrained model, and what it costs."""
    made = run.made(REFERENCE) if run.again and "train" in run.spec else []
    return (
        f". A model retrained without the forget set may always be shipped; it takes {time_text(made[0].seconds)} here."
        if made
        else "."
    )


def _not_shipped(judged: list[Json]) -> list[Json]:
    """The models that may not be shipped, by headline, in the order in which headlines first occur."""
    by_flag: dict[str, list[str]] = {}
    for verdict in judged:
        if verdict["verdict"] != "erased":
            by_flag.setdefault(verdict["verdict"], []).append(verdict["model"])
    return [{"flag": flag, "models": models, "why": WORDS[flag][len(models) > 1]} for flag, models in by_flag.items()]


def _nearest(run: Run, judged: list[Json]) -> str:
    """The model that is closest to `erased`: undecided before accused, then the smallest residual after any attack."""

    def distance(verdict: Json) -> tuple[int, float]:
        worst = run.worst(verdict["model"], knowledge_key(run.table))
        residual = abs(float(worst["residual"])) if worst else math.inf
        open_ = verdict["verdict"] == "inconclusive"
        return (0 if open_ else len(verdict["flags"]), residual if math.isfinite(residual) else math.inf)

    return min(judged, key=distance)["model"] if judged else ""


def _without_candidate(run: Run) -> Step:
    return Step("Add a method to the spec and run it again.", OTHERS if run.again else "", other=True)
