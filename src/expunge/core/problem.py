"""What must be forgotten: the task's view of the data, and the ids of each set."""

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
"""Share of the forget set that attacks may use; audits score the rest (2505.22310, leak guard)."""


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Problem:
    """One forgetting problem; immutable.

    Args:
        data: The training data of the original model, with changed labels, triggers and planted text.
        forget: Ids to forget: of planted corruption, only the discovered part.
        retain: Ids to keep. They include undiscovered corruption, because the method does not know about it.
        test: Ids on which no model trains and utility is measured.
        objective: How models are judged; by default the objective of the data.
        holdout: Optional ids of unseen examples that resemble the forget set.
        corrupted: Optional ids of *all* planted corruption, discovered or not; references train without them.
        true_targets: Optional targets before corruption, aligned with `data.targets`.

    Raises:
        SpecError: A set is empty, ids are out of range or occur twice, or sets overlap.
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
            among = self.data.test if name == "test" else self.data.train
            check_ids(ids, len(self.data), where=name, among=among)
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

    def __repr__(self) -> str:
        sizes = (f"{name} {len(getattr(self, name))}" for name in ("forget", "retain", "test", "holdout"))
        return f"Problem({', '.join(sizes)}, {self.data!r})"

    @cached_property
    def train(self) -> Tensor:
        """Training ids of the original model, sorted: forget and retain."""
        return torch.cat([self.forget, self.retain]).sort().values

    @cached_property
    def reference_train(self) -> Tensor:
        """Training ids of references: retain without any corruption, discovered or not."""
        return self.retain[~torch.isin(self.retain, self.corrupted)].sort().values

    @cached_property
    def exposed(self) -> Tensor:
        """The fixed part of the forget set on which attacks may train: about 20 % of the groups."""
        return self.forget[self._is_exposed]

    @cached_property
    def unexposed(self) -> Tensor:
        """The rest of the forget set: no attack uses it, and every audit scores it."""
        return self.forget[~self._is_exposed]

    @cached_property
    def paraphrases(self) -> Tensor:
        """The data's paraphrases of facts in `unexposed`; mostly there are none."""
        if self.data.paraphrases is None:
            return _nothing()
        groups = self.data.group_of(self.data.paraphrases)
        return self.data.paraphrases[torch.isin(groups, self.data.group_of(self.unexposed))]

    @property
    def questions(self) -> Tensor:
        """The data's questions about what must be forgotten; mostly there are none."""
        return _nothing() if self.data.questions is None else self.data.questions

    @cached_property
    def _is_exposed(self) -> Tensor:
        groups = self.data.group_of(self.forget)
        unique = groups.unique()
        # If there are two groups or more, each part gets at least one, so that neither is empty.
        count = min(max(round(EXPOSED_SHARE * len(unique)), 1), len(unique) - 1)
        generator = generator_of(0, "exposed")
        chosen = unique[torch.randperm(len(unique), generator=generator)[:count]]
        return torch.isin(groups, chosen)


def require_unretained(problem: Problem) -> None:
    """Refuse a forget set whose examples are all in the retain set, too: retrained models would know every one of them.

    Raises:
        SpecError: Each forget example equals a retain example in inputs and targets. Inputs that are read on demand are
            not compared.
    """
    data = problem.data
    if not isinstance(data.inputs, Tensor):
        return
    left = {_content(data, index) for index in problem.forget.tolist()}
    for index in problem.retain.tolist():
        left.discard(_content(data, index))
        if not left:
            raise SpecError(
                f"all {len(problem.forget)} forget examples are in the retain set, too",
                where="forget",
                allowed="examples to forget that the retain set does not hold",
                remedy="take them out of the retain set: it is the rest of the training data",
            )


def _content(data: Data, index: int) -> bytes:
    """The bytes of an example's inputs and target."""
    parts = (tensor[index].reshape(-1).contiguous() for tensor in (data.inputs, data.targets))
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts)


def require_examples(data: Data) -> None:
    """Refuse data without training examples, or without test examples.

    Raises:
        SpecError: A set is empty.
    """
    for name, ids in (("training", data.train), ("test", data.test)):
        if len(ids) == 0:
            raise SpecError(f"the {name} set is empty", where="data", remedy=_WHEN_EMPTY[name])


_WHEN_EMPTY = {
    "training": "give the data training examples",
    "forget": "name at least one example to forget",
    "retain": "forget fewer examples: no training data would be left",
    "test": "give the data a test set: utility cannot be measured without one",
}
