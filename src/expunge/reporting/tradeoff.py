"""The trade-off plot: residual against utility, with cost as the size of the mark."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from expunge.evidence.table import ORIGINAL
from expunge.reporting.record import Json, Run
from expunge.reporting.svg import (
    INK,
    LARGE,
    METHOD,
    QUIET,
    REFERENCE,
    Drawing,
    Stop,
    drawing,
    label_points,
    panel,
)
from expunge.reporting.svg import (
    ORIGINAL as GREY,
)
from expunge.reporting.text import knowledge_key, percent, utility_metric

SMALLEST, WHOLE = 18.0, 320.0
"""Areas in square points of the mark of a free method, and of a method that costs as much as a retraining."""


@dataclass(frozen=True)
class Candidate:
    """What a user needs to choose a method; shares of examples, with 90 % intervals."""

    model: str
    residual: tuple[float, float, float]
    """Unlearned minus retrained after the worst attack: value, low, high."""
    utility: tuple[float, float, float]
    """Unlearned minus retrained on test data: value, low, high."""
    cost: float | None
    """Share of a retraining's gradients."""
    attack: str | None

    @property
    def text(self) -> str:
        """The choice in words, for the pointer."""
        after = f" after {self.attack}" if self.attack else ""
        cost = "" if self.cost is None else f", {percent(self.cost)} of a retraining"
        return f"{self.model}: residual {_spelled(self.residual)}{after}, utility {_spelled(self.utility)} points{cost}"


def choices(run: Run) -> list[Candidate]:
    """The methods whose residual and utility were both measured."""
    key, measured = knowledge_key(run.table), []
    for model in run.methods:
        worst, utility = run.worst(model, key), run.utility(model)
        if worst is None or utility is None:
            continue
        residual, useful = _ends(worst), _ends(utility)
        if math.isfinite(residual[0]) and math.isfinite(useful[0]):
            measured.append(Candidate(model, residual, useful, run.cost_share(model), worst["attack"]))
    return measured


def tradeoff(run: Run) -> Drawing | None:
    """The plot: higher is more residual knowledge, left is less utility, larger costs more; none without methods."""
    methods = choices(run)
    if not methods:
        return None
    figure, axes = panel(LARGE, left=0.62)
    # Without retrained models, knowledge is compared with unseen examples, and utility with the original.
    against, useful = ("retrained", "retrained") if run.retrained else ("unseen", "original")
    margin, bound = _margins(run)
    axes.axhline(0, color=QUIET, linewidth=0.7, zorder=1)
    axes.axvline(0, color=QUIET, linewidth=0.7, zorder=1)
    for choice in methods:
        (x, *xs), (y, *ys) = choice.utility, choice.residual
        axes.plot(xs, [y, y], color=METHOD, linewidth=0.9, alpha=0.5, zorder=3)
        axes.plot([x, x], ys, color=METHOD, linewidth=0.9, alpha=0.5, zorder=3)
        cost = min(0.2 if choice.cost is None else choice.cost, 1.5)
        area = SMALLEST + (WHOLE - SMALLEST) * cost
        axes.scatter([x], [y], area, METHOD, alpha=0.8, linewidths=0, zorder=4)
    axes.scatter([0], [0], 45, REFERENCE, marker="D", zorder=5, linewidths=0)
    points = [(c.utility[0], c.residual[0], c.model) for c in methods] + [(0.0, 0.0, against)]
    stops: list[Stop] = [(x, y, c.text) for (x, y, _), c in zip(points, methods, strict=False)]
    stops.append((0.0, 0.0, f"{against}: what the methods are compared with"))
    if (original := _original(run)) is not None:
        axes.scatter([original[0]], [original[1]], 45, INK, marker="X", zorder=5, linewidths=0)
        points.append((*original, "original"))
        stops.append((*original, f"original: {_spelled((original[1],))} more than retrained, never unlearned"))
    axes.margins(0.12)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    low, high = min(low, -1.6 * margin), max(high, 1.6 * margin)
    left, right = min(left, 1.4 * bound), max(right, -0.5 * bound)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.add_patch(Rectangle((bound, -margin), right - bound, 2 * margin, color=REFERENCE, alpha=0.13, linewidth=0))
    axes.grid(axis="x", color=GREY, linewidth=0.3, alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if abs(value) > 1e-9 else "0"))
    axes.set_xlabel(f"utility: test accuracy, unlearned minus {useful}, in points")
    axes.set_ylabel(f"residual: known minus {against}, in points", labelpad=1)
    label_points(axes, points, free=8)
    return drawing(figure, axes, "Trade-off of forgetting, utility and cost", stops, along="xy")


def _margins(run: Run) -> tuple[float, float]:
    """The margin of the residual and the bound of utility (negative), as the verdicts use them."""
    key = knowledge_key(run.table)
    first, useful = run.audit(run.methods[0], *key, None), run.utility(run.methods[0])
    margin = float(first["margin"]) if first else 0.0
    return (margin if math.isfinite(margin) else 0.0), -float(useful["margin"]) if useful else 0.0


def _original(run: Run) -> tuple[float, float] | None:
    """Original minus retrained in utility and in knowledge, none if either was not measured."""
    knows = run.rows.get((ORIGINAL, None, knowledge_key(run.table)))
    useful = run.rows.get((ORIGINAL, None, (utility_metric(run.table), "test")))
    if not knows or not useful or knows["gap"] is None or useful["gap"] is None:
        return None
    return float(useful["gap"]), float(knows["gap"])


def _ends(audit: Json) -> tuple[float, float, float]:
    return float(audit["residual"]), float(audit["low"]), float(audit["high"])


def _spelled(value: tuple[float, ...]) -> str:
    ends = value[1:]
    between = f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends and all(map(math.isfinite, ends)) else ""
    return f"{100 * value[0]:+.1f}{between}"
