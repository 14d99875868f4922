"""Forget some of the made-up people of the data set `people`, with all their facts.

The people to forget come in tens, in each of which every value of every attribute occurs once. So the shares of the
values among those who are retained stay the same, and retrained models guess by them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Task
from expunge.core.data import Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.data.people import VALUES
from expunge.tasks._split import without


@dataclass(frozen=True)
class People(Task):
    """Whole people, other ones for each seed of the run."""

    count: Count = 10
    """Number of people; a multiple of 10."""

    def __call__(self, data: Data, seed: int, measured: Mapping[str, Tensor]) -> Problem:
        """The problem.

        Raises:
            SpecError: The data are not people, or `count` is no multiple of 10, or everybody would be forgotten.
        """
        if data.paraphrases is None or data.holdout is None:
            raise SpecError("the data are not people", where="forget (people)", allowed='data with name = "people"')
        persons = data.group_of(data.paraphrases).unique()
        if self.count % VALUES or self.count >= len(persons):
            allowed = f"{VALUES}, {2 * VALUES}, ... below {len(persons)}, the number of people who may be forgotten"
            raise SpecError(f"found {self.count}", where="forget.count", allowed=allowed)
        tens = persons.view(-1, VALUES)
        order = torch.randperm(len(tens), generator=generator_of(seed, "people"))
        chosen = tens[order[: self.count // VALUES]].flatten()
        forget = data.train[torch.isin(data.group_of(data.train), chosen)]
        return Problem(data, forget, without(data, forget), data.test, holdout=data.holdout)
