"""Guards against verdicts from models that were destroyed: by an attack, or by the unlearning itself.

**Void attacks.** An attack that destroys every model makes all models equal, and proves nothing. An attack is `void` if
the utility of the references falls by clearly more than the bound, `valid` if such a fall is excluded, and `unclear`
otherwise. A void attack accuses nobody and clears nobody. An unclear one may accuse, but does not clear. An attack that
changed no answer of any model is `idle`: it was too weak to clear anybody.

**Models without skill.** Skill is utility beyond its baseline, see `core/answers.py`. If a model has less than a tenth
of the skill of retrained models, then its answers hardly depend on the input. Such a model cannot show knowledge, nor
its absence: it is judged by its utility alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge.evidence.comparison import SHARE, Design, Weights
from expunge.evidence.contrast import Contrast, alone, contrast, step_of
from expunge.evidence.intervals import LEVEL
from expunge.evidence.quantity import Quantity
from expunge.evidence.utility import overall

State = Literal["valid", "idle", "unclear", "void"]
CLEARLY = 5
"""Multiple of the bound of utility that an attack may cost before it is void."""
HARM: Weights = {"after": 1.0, "before": -1.0}


@dataclass(frozen=True)
class AttackGuard:
    """What an attack did to models that never knew the forget set."""

    attack: str
    state: State
    trains: bool
    """Whether it trains the model, so that dormant knowledge could wake."""
    metric: str = ""
    """The utility that fell most."""
    harm: Contrast | None = None
    """Its value after the attack minus before it; none if it was not measured."""
    limit: float = 0.0
    """The fall that makes an attack void, negative."""
    unit: str = "share"
    """Unit of the utility."""

    @property
    def clears(self) -> bool:
        """Whether a model that withstands the attack has shown anything."""
        return self.state == "valid"


def guard_of(attack: str, quantities: Sequence[Quantity], *, trains: bool, references: bool) -> AttackGuard:
    """Whether an attack left the references' utility intact.

    Args:
        attack: Its label.
        quantities: All quantities of one unlearned model.
        trains: Whether the attack trains.
        references: Whether there are retrained models. Without them, the unlearned model itself must survive.

    Returns:
        The guard of the utility that fell most; `unclear` if no utility was measured after the attack.
    """
    if _idle(attack, quantities):
        return AttackGuard(attack, "idle", trains)
    guards = [
        _guard(attack, quantity, trains, references) for quantity in overall(quantities) if attack in quantity.attacked
    ]
    severity = {"valid": 0, "unclear": 1, "void": 2}  # an idle attack never comes here
    return max(guards, key=lambda guard: severity[guard.state], default=AttackGuard(attack, "unclear", trains))


def _idle(attack: str, quantities: Sequence[Quantity]) -> bool:
    pairs = [
        (quantity.values(f"{name}_after", attack), quantity.values(name, attack))
        for quantity in quantities
        if attack in quantity.attacked
        for name in ("reference", "unlearned")
    ]
    return all(np.array_equal(a, b) for after, before in pairs for a, b in zip(after, before, strict=True))


def _guard(attack: str, quantity: Quantity, trains: bool, references: bool) -> AttackGuard:
    name = "reference" if references else "unlearned"
    pairs = zip(quantity.values(f"{name}_after", attack), quantity.values(name, attack), strict=True)
    ids = [quantity.ids_of(name, index) for index in range(len(quantity.values(name, attack)))]
    harm = contrast([after - before for after, before in pairs], ids, step=step_of(HARM.values(), quantity.step))
    if len(ids) == 1:  # a single model has no scatter over seeds, only the error over examples
        harm = alone(harm.mean, harm.sampling, quantity.examples)
    limit = -CLEARLY * quantity.bound
    state: State = "valid" if harm.p_below(limit) > LEVEL else "void"
    if state == "valid" and not harm.low > limit:
        state = "unclear"
    return AttackGuard(attack, state, trains, f"{quantity.metric} on {quantity.split}", harm, limit, quantity.unit)


def without_skill(attack: str | None, quantities: Sequence[Quantity], design: Design) -> Contrast | None:
    """The skill of the unlearned model, minus a tenth of that of retrained models before any attack.

    Args:
        attack: The attack on the unlearned model, none for before.
        quantities: All quantities of one unlearned model.
        design: The kind of claim.

    Returns:
        The contrast if it lies below 0: the model has no skill. Otherwise `None`.
    """
    name = "unlearned" if attack is None else "unlearned_after"
    for quantity in quantities:
        if quantity.role == "skill" and (attack is None or attack in quantity.attacked):
            skill = design(quantity, attack, {name: 1.0, "reference": -SHARE}, 0.0)
            if skill.p_below(0.0) <= LEVEL:
                return skill
    return None
