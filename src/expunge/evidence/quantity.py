"""An audited quantity over seeds: the original, the retrained and the unlearned model, before and after attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from expunge.base.errors import SpecError, unknown
from expunge.evidence.intervals import Floats, Ints
from expunge.evidence.scores import Scores

Judged = Literal["knowledge", "utility"]
"""The roles that enter verdicts; predictors and descriptions do not."""


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
        pairs = [(self.reference, self.unlearned), *self.attacked.values()]
        pools = [np.concatenate([*left, *right]) for left, right in pairs]
        if all(2 * np.unique(pool).size > pool.size for pool in pools):
            return 0.0
        pooled = np.concatenate([*self.original, *pools])
        finite = pooled[np.isfinite(pooled)]
        return float(np.ptp(finite)) if finite.size else 0.0

    @classmethod
    def from_scores(
        cls,
        original: Sequence[Scores],
        reference: Sequence[Scores],
        unlearned: Sequence[Scores],
        attacked: Mapping[str, tuple[Sequence[Scores], Sequence[Scores]]] | None = None,
        *,
        required: bool = False,
    ) -> Quantity:
        """The quantity made of the scores of one metric, one entry per seed; values are sorted by id.

        Args:
            original: Per seed.
            reference: Per seed; for a claim about one model, per reference. Scored on the original's examples.
            unlearned: Per seed.
            attacked: Label of an attack -> scores of the reference and of the unlearned model after it.
            required: Whether `erased` depends on it.

        Returns:
            The quantity, oriented by the sign of the scores.

        Raises:
            SpecError: Two models of one seed were scored on different examples or with different metrics.
        """
        base, pairs = list(original), attacked or {}
        return cls(
            metric=base[0].metric,
            split=base[0].split,
            role=base[0].role,  # type: ignore[arg-type]  # checked in __post_init__, with the place in the message
            required=required,
            ids=[_draws(entry) for entry in base],
            original=_ordered(base, base),
            reference=_ordered(reference, base),
            unlearned=_ordered(unlearned, base),
            attacked={label: (_ordered(left, base), _ordered(right, base)) for label, (left, right) in pairs.items()},
            bound=base[0].bound,
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
        )


def _draws(entry: Scores) -> Ints:
    if entry.reduce != "mean":
        return np.zeros(1, dtype=np.int64)
    return entry.draws[np.argsort(entry.ids, kind="stable")]


def _ordered(entries: Sequence[Scores], base: Sequence[Scores]) -> list[Floats]:
    if len(base) == 1:  # one model's examples, on which every reference was scored
        return [_aligned(entry, base[0]) for entry in entries]
    if len(entries) != len(base):
        raise SpecError(
            f"found {len(entries)} seeds", where=base[0].metric, allowed=f"{len(base)}, as for the original"
        )
    return [_aligned(entry, own) for entry, own in zip(entries, base, strict=True)]


def _aligned(entry: Scores, base: Scores) -> Floats:
    if (entry.metric, entry.sign, entry.reduce, entry.role) != (base.metric, base.sign, base.reduce, base.role):
        raise SpecError(
            f"scores of {entry.key} are mixed with those of {base.key}", where=base.metric, allowed="one metric"
        )
    if entry.reduce != "mean":
        return np.array([entry.sign * entry.reduced()])
    order = np.argsort(entry.ids, kind="stable")
    if not np.array_equal(entry.ids[order], np.sort(base.ids)):
        raise SpecError(
            "two models of one seed were scored on different examples",
            where=base.metric,
            remedy="score every model on the same part of the data",
        )
    return entry.sign * entry.values[order]
