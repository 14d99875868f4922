"""An audited quantity over seeds: the original, the retrained and the unlearned model, before and after attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from expunge.base.errors import SpecError, unknown
from expunge.evidence.intervals import Floats, Ints
from expunge.evidence.scores import FEWEST_OF_LABEL, Scores

Judged = Literal["knowledge", "utility", "skill"]
"""The roles that enter verdicts; predictors and descriptions do not. `skill` is utility beyond its baseline."""


@dataclass(frozen=True, eq=False)
class Quantity:
    """Values per seed and example, oriented so that a higher value means *knows more*, or *is more useful*.

    Raises:
        SpecError: The role enters no verdict, or the numbers of seeds, values and ids do not match.
    """

    metric: str
    split: str
    role: Judged
    required: bool
    """Whether `erased` depends on it."""
    ids: list[Ints]
    """Example ids per seed, `[n_s]`; a single array holds for all seeds."""
    original: list[Floats]
    reference: list[Floats]
    """Values of retrained models; without them, the unlearned model's values on held-out examples."""
    unlearned: list[Floats]
    attacked: dict[str, tuple[list[Floats], list[Floats]]] = field(default_factory=dict)
    """Label of an attack -> values of the reference and of the unlearned model after it, at the peak of each curve."""
    reference_ids: list[Ints] | None = None
    """Ids of the held-out examples, if these replace the reference; otherwise `ids` hold for the reference too."""
    bound: float = 0.02
    """Utility only: the largest loss that is not damage, in the quantity's unit."""
    unit: str = "share"
    change: float | None = None
    """The most that one example can change; by default `step` reads it from the values."""
    labels: list[Ints] | None = None
    """Utility by label: the label of each value per seed, `[n_s]`; a single array holds for all seeds."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Judged):
            raise unknown("role in a verdict", str(self.role), get_args(Judged), where=self.metric)
        self._check("original", self.original, len(self.unlearned))
        self._check("unlearned", self.unlearned, len(self.unlearned))
        self._check("reference", self.reference, len(self.reference))
        for label, (reference, unlearned) in self.attacked.items():
            self._check(f"attacked.{label}.reference", reference, len(self.reference))
            self._check(f"attacked.{label}.unlearned", unlearned, len(self.unlearned))

    def _check(self, name: str, arrays: list[Floats], seeds: int) -> None:
        where = f"{self.metric}.{name}"
        if len(arrays) != seeds:
            raise SpecError(f"found {len(arrays)} seeds", where=where, allowed=f"{seeds}")
        for index, array in enumerate(arrays):
            expected = self.ids_of(name, index).shape
            if array.shape != expected or array.size == 0:
                raise SpecError(
                    f"seed {index} has shape {array.shape}", where=where, allowed=f"that of its ids {expected}"
                )

    def ids_of(self, name: str, index: int) -> Ints:
        """The ids of the values called `name` in seed `index`, `[n_s]`; names with `reference` give its own ids.

        Raises:
            SpecError: That seed has no ids.
        """
        ids = self.reference_ids if self.reference_ids is not None and "reference" in name else self.ids
        if len(ids) == 1:
            return ids[0]
        if index >= len(ids):
            raise SpecError(
                f"no ids for seed {index}", where=f"{self.metric}.ids", allowed="one array per seed, or one for all"
            )
        return ids[index]

    def values(self, name: str, attack: str | None) -> list[Floats]:
        """Values per seed by name: `original`, `reference`, `unlearned`; with `_after` appended, after `attack`."""
        if attack is not None and name.endswith("_after"):
            return self.attacked[attack][0 if name == "reference_after" else 1]
        return {"original": self.original, "reference": self.reference, "unlearned": self.unlearned}[name]

    @property
    def examples(self) -> int:
        """Number of distinct examples in a seed, the smallest over the seeds."""
        return min(np.unique(ids).size for ids in self.ids)

    @cached_property
    def step(self) -> float:
        """The most that one example can change, for values that repeat; 0 for continuous values.

        Values that repeat are counts, and equal counts say little about the next example. Continuous values that agree
        to the last bit are treated in the same way, because two models that were trained separately never agree so.
        """
        if self.change is not None:
            return self.change
        return _largest_change(self.original, [(self.reference, self.unlearned), *self.attacked.values()])

    def by_label(self) -> dict[int, Quantity]:
        """One quantity for each label that has at least `FEWEST_OF_LABEL` examples in every seed."""
        if self.labels is None:
            return {}
        counts = [dict(zip(*np.unique(labels, return_counts=True), strict=True)) for labels in self.labels]
        judged = [label for label in counts[0] if min(count.get(label, 0) for count in counts) >= FEWEST_OF_LABEL]
        return {int(label): self._of_label(label) for label in judged}

    def _of_label(self, label: int) -> Quantity:
        masks = [labels == label for labels in self.labels or []]

        def part(arrays: list[Floats]) -> list[Floats]:
            return [array[masks[index % len(masks)]] for index, array in enumerate(arrays)]

        return replace(
            self,
            ids=[ids[mask] for ids, mask in zip(self.ids, masks, strict=True)],
            original=part(self.original),
            reference=part(self.reference),
            unlearned=part(self.unlearned),
            attacked={attack: (part(left), part(right)) for attack, (left, right) in self.attacked.items()},
            change=self.step,
            labels=None,
        )

    @classmethod
    def from_scores(
        cls,
        original: Sequence[Scores],
        reference: Sequence[Scores],
        unlearned: Sequence[Scores],
        attacked: Mapping[str, tuple[Sequence[Scores], Sequence[Scores]]] | None = None,
        *,
        required: bool = False,
        skill: bool = False,
    ) -> Quantity:
        """The quantity made of the scores of one metric, one entry per seed; values are sorted by id.

        Knowledge and skill are values beyond their baseline; utility is the values themselves.

        Args:
            original: Per seed.
            reference: Per seed; for a claim about one model, per reference. Scored on the original's examples.
            unlearned: Per seed.
            attacked: Label of an attack -> scores of the reference and of the unlearned model after it.
            required: Whether `erased` depends on it.
            skill: Whether to return the skill that belongs to a utility.

        Returns:
            The quantity, oriented by the sign of the scores.

        Raises:
            SpecError: Two models of one seed were scored on different examples or with different metrics.
        """
        base, pairs = list(original), attacked or {}
        beyond = skill or base[0].role == "knowledge"

        def ordered(entries: Sequence[Scores], beyond: bool = beyond) -> list[Floats]:
            return _ordered(entries, base, beyond)

        raw = [(ordered(a, False), ordered(b, False)) for a, b in [(reference, unlearned), *pairs.values()]]
        return cls(
            metric=base[0].metric,
            split=base[0].split,
            role="skill" if skill else base[0].role,  # type: ignore[arg-type]  # checked in __post_init__
            required=required,
            ids=[_draws(entry) for entry in base],
            original=ordered(base),
            reference=ordered(reference),
            unlearned=ordered(unlearned),
            attacked={label: (ordered(left), ordered(right)) for label, (left, right) in pairs.items()},
            bound=base[0].bound,
            unit=base[0].unit,
            change=_largest_change(ordered(base, False), raw),
            labels=None if base[0].label is None else [_labels(entry) for entry in base],
        )

    @classmethod
    def against_held_out(
        cls,
        original: Sequence[Scores],
        held_out: Sequence[Scores],
        unlearned: Sequence[Scores],
        attacked: Mapping[str, tuple[Sequence[Scores], Sequence[Scores]]] | None = None,
        *,
        required: bool = False,
    ) -> Quantity:
        """As `from_scores`, but the unlearned model's values on held-out examples replace the reference.

        Args:
            original: On the forget set, per seed.
            held_out: The unlearned model on examples that no model was trained on, per seed.
            unlearned: On the forget set, per seed.
            attacked: Label of an attack -> scores of the attacked unlearned model on held-out and on forget examples.
            required: Whether the spec marks it.

        Returns:
            The quantity, for `judge_without_reference`.

        Raises:
            SpecError: Two entries of one seed were scored on different examples or with different metrics.
        """
        base, unseen, pairs = list(original), list(held_out), attacked or {}
        raw = [
            (_ordered(a, unseen, False), _ordered(b, base, False)) for a, b in [(unseen, unlearned), *pairs.values()]
        ]
        return cls(
            metric=base[0].metric,
            split=base[0].split,
            role=base[0].role,  # type: ignore[arg-type]  # checked in __post_init__, with the place in the message
            required=required,
            ids=[_draws(entry) for entry in base],
            original=_ordered(base, base),
            reference=_ordered(unseen, unseen),
            unlearned=_ordered(unlearned, base),
            attacked={label: (_ordered(left, unseen), _ordered(right, base)) for label, (left, right) in pairs.items()},
            reference_ids=[_draws(entry) for entry in unseen],
            unit=base[0].unit,
            change=_largest_change(_ordered(base, base, False), raw),
        )


def _largest_change(original: list[Floats], pairs: Sequence[tuple[list[Floats], list[Floats]]]) -> float:
    """The range of values that repeat; 0 if most values occur once."""
    pools = [np.concatenate([*left, *right]) for left, right in pairs]
    if all(2 * np.unique(pool).size > pool.size for pool in pools):
        return 0.0
    pooled = np.concatenate([*original, *pools])
    finite = pooled[np.isfinite(pooled)]
    return float(np.ptp(finite)) if finite.size else 0.0


def _order(entry: Scores) -> Ints:
    return np.argsort(entry.ids, kind="stable") if entry.label is None else np.lexsort((entry.label, entry.ids))


def _labels(entry: Scores) -> Ints:
    return np.zeros(0, dtype=np.int64) if entry.label is None else entry.label[_order(entry)]


def _draws(entry: Scores) -> Ints:
    return entry.draws[_order(entry)] if _per_example(entry) else np.zeros(1, dtype=np.int64)


def _per_example(entry: Scores) -> bool:
    return entry.reduce in ("mean", "worst")


def _ordered(entries: Sequence[Scores], base: Sequence[Scores], beyond: bool = True) -> list[Floats]:
    if len(base) == 1:  # one model's examples, on which every reference was scored
        return [_aligned(entry, base[0], beyond) for entry in entries]
    if len(entries) != len(base):
        raise SpecError(
            f"found {len(entries)} seeds", where=base[0].metric, allowed=f"{len(base)}, as for the original"
        )
    return [_aligned(entry, own, beyond) for entry, own in zip(entries, base, strict=True)]


def _aligned(entry: Scores, base: Scores, beyond: bool) -> Floats:
    """A model's values in the order of the ids, oriented, with or without their baseline."""
    for name in ("metric", "sign", "reduce", "role", "required", "bound"):
        if getattr(entry, name) != getattr(base, name):
            raise SpecError(
                f"scores of {entry.key} have {name} {getattr(entry, name)!r}, those of {base.key} "
                f"{getattr(base, name)!r}",
                where=base.metric,
                allowed="one metric, with the same facts for every model",
            )
    if not _per_example(entry):
        return np.array([entry.sign * entry.reduced()])
    order, own = _order(entry), _order(base)
    same_labels = np.array_equal(_labels(entry), _labels(base))
    if not np.array_equal(entry.ids[order], base.ids[own]) or not same_labels:
        raise SpecError(
            "two models of one seed were scored on different examples",
            where=base.metric,
            remedy="score every model on the same part of the data",
        )
    values = entry.values if entry.baseline is None or not beyond else entry.values - entry.baseline
    return entry.sign * values[order]
