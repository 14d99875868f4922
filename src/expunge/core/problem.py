"""What is to be forgotten: the task's own view of the data, and which ids play which part."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.data import Data, check_ids
from expunge.core.generators import generator_of
from expunge.core.objective import Objective

EXPOSED_SHARE = 0.2
"""Share of the forget set that attacks may use; the rest is what every audit scores (2505.22310, leak guard)."""


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Problem:
    """One forgetting problem; immutable.

    Args:
        data: The data as the original model saw it: changed labels, triggers and planted text included.
        forget: Ids that must go, as far as they were discovered.
        retain: Ids that stay. Undiscovered corruption is among them: whoever unlearns does not know better.
        test: Ids that no model trains on and that utility is measured on.
        objective: What models are judged by; the data's own where not given.
        holdout: Optional ids of unseen examples that resemble the forget set.
        corrupted: Optional ids of *all* planted corruption, discovered or not; references train without them.
        true_targets: Optional targets before corruption, aligned with `data.targets`.

    Raises:
        SpecError: An empty set, ids out of range or named twice, or sets that overlap.
    """

    data: Data
    forget: Tensor
    retain: Tensor
    test: Tensor
    objective: Objective = None  # type: ignore[assignment]
    holdout: Tensor = field(default_factory=_nothing)
    corrupted: Tensor = field(default_factory=_nothing)
    true_targets: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", self.objective or self.data.judged_by(None).objective)
        for name in ("forget", "retain", "test"):
            ids = getattr(self, name)
            check_ids(ids, len(self.data), where=name)
            if len(ids) == 0:
                raise SpecError(f"the {name} set is empty", where=name, remedy=_WHEN_EMPTY[name])
        for a, b in (("forget", "retain"), ("forget", "test"), ("retain", "test")):
            both = torch.isin(getattr(self, a), getattr(self, b))
            if both.any():
                raise SpecError(
                    f"{int(both.sum())} ids are in both {a} and {b}, the first is {int(getattr(self, a)[both][0])}",
                    where=a,
                    allowed="sets without common ids",
                )

    @cached_property
    def train(self) -> Tensor:
        """Ids that the original model trains on, sorted: forget, retain, and nothing else."""
        return torch.cat([self.forget, self.retain]).sort().values

    @cached_property
    def reference_train(self) -> Tensor:
        """Ids that references train on: retain without any corruption, discovered or not."""
        return self.retain[~torch.isin(self.retain, self.corrupted)].sort().values

    @cached_property
    def exposed(self) -> Tensor:
        """The fixed part of the forget set, about 20 % by groups, that attacks may train on."""
        return self.forget[self._is_exposed]

    @cached_property
    def unexposed(self) -> Tensor:
        """The other part of the forget set, which no attack sees and every audit scores."""
        return self.forget[~self._is_exposed]

    @cached_property
    def _is_exposed(self) -> Tensor:
        groups = self.data.group_of(self.forget)
        unique = groups.unique()
        # At least one group on either side wherever there are two, so that neither part is empty.
        count = min(max(round(EXPOSED_SHARE * len(unique)), 1), len(unique) - 1)
        generator = generator_of(0, "exposed")
        chosen = unique[torch.randperm(len(unique), generator=generator)[:count]]
        return torch.isin(groups, chosen)


_WHEN_EMPTY = {
    "forget": "name at least one example to forget",
    "retain": "forget fewer examples: nothing would be left to train on",
    "test": "give the data a test set: utility cannot be measured without one",
}
