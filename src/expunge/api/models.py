"""Models that a case is held against, trained when they are first asked for and kept with the case.

References are the retrained models; shadows are what `u_lira` compares with: pairs of a model trained with the forget
set and one trained without, and the method again on each of the former. Their seeds are those that a spec derives from
the same seed, so that on the same data, in the same order, `u_lira` of one method has the same numbers as in a spec; a
chain of methods draws others. References have seeds of their own: a spec has one per seed, here all belong to one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.base.record import address
from expunge.base.seeds import derive
from expunge.core.case import Case, Shadows, Unlearned, train_model
from expunge.core.contracts import Attack


@dataclass
class _Kept:
    references: list[nn.Module] = field(default_factory=list)
    shadows: dict[str, list[nn.Module]] = field(default_factory=dict)
    """`original` and `reference`, and each method, or attack on these, by the address of its settings and budget."""


_kept: WeakKeyDictionary[Case, _Kept] = WeakKeyDictionary()


def references_of(case: Case, count: int) -> list[nn.Module]:
    """The case's first so many references; none where it has no recipe."""
    kept = _kept.setdefault(case, _Kept()).references
    while len(kept) < count and case.recipe is not None:
        kept.append(_trained(case, case.problem.reference_train, derive(case.seed, "reference", len(kept))))
    return kept[:count]


def shadows_of(case: Case, done: Unlearned | None, pairs: int, attack: tuple[str, Attack] | None = None) -> Shadows:
    """So many pairs of shadow models, made like the unlearned model, or without one like those that were only trained.

    Args:
        case: Its recipe trains them.
        done: What `unlearn` returned; `None` for the original and for references.
        pairs: Models of either kind.
        attack: Label and attack that each of them goes through.

    Returns:
        The same models for the same case, method, settings, budget and attack.

    Raises:
        MissingError: There is no recipe, or the method that made the model is not known.
    """
    knew, never = (_pairs(case, kind, pairs) for kind in ("original", "reference"))
    treated = knew if done is None else _unlearned(case, done, knew)
    if attack is None:
        return Shadows(treated, never)
    made = "original" if done is None else address(_made(done))
    return Shadows(_attacked(case, made, treated, attack), _attacked(case, "reference", never, attack))


def _attacked(case: Case, kind: str, models: list[nn.Module], attack: tuple[str, Attack]) -> list[nn.Module]:
    label, part = attack
    kept = _kept[case].shadows.setdefault(address([kind, label, part.fingerprint()]), [])
    for index in range(len(kept), len(models)):
        kept.append(part(models[index], case, derive(_seed(case, index), "attack", label)).model)
    return kept[: len(models)]


def _pairs(case: Case, kind: str, count: int) -> list[nn.Module]:
    if case.recipe is None:
        raise MissingError("there is no recipe to train shadow models with", where="case", remedy="pass recipe=")
    kept = _kept.setdefault(case, _Kept()).shadows.setdefault(kind, [])
    ids = case.problem.train if kind == "original" else case.problem.reference_train
    while len(kept) < count:
        kept.append(_trained(case, ids, derive(_seed(case, len(kept)), "train")))
    return kept[:count]


def _unlearned(case: Case, done: Unlearned, knew: list[nn.Module]) -> list[nn.Module]:
    if done.part is None or not done.part.repeatable:
        raise MissingError(
            "how the model was unlearned is not known, and shadow models need the same",
            where="case",
            remedy="make it with expunge.unlearn, by another method than checkpoint",
        )
    starts = knew if done.after is None else _unlearned(case, done.after, knew)
    kept = _kept[case].shadows.setdefault(address(_made(done)), [])
    for index in range(len(kept), len(knew)):
        seed = derive(_seed(case, index), "unlearn", done.method)
        kept.append(done.part(starts[index], case.problem, case.recipe, seed, done.budget).model)
    return kept[: len(knew)]


def _made(done: Unlearned) -> list[Any]:
    """All that the outcome follows from: each method with its budget, the last one first."""
    step = {"part": done.part.fingerprint(), "budget": done.budget}
    return [step, *(_made(done.after) if done.after else [])]


def _seed(case: Case, index: int) -> int:
    return derive(case.seed, "shadow", str(index))


def _trained(case: Case, ids: Tensor, seed: int) -> nn.Module:
    assert case.recipe is not None
    return train_model(case.recipe, case.problem.data, ids, seed)
