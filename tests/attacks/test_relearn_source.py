"""What a relearning attack trains on: its source and k exposed examples, never a held-out one nor a copy of one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.attacks.relearn import Relearn
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.models.mlp import MLP


def problem(seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(100, 4, generator=generator), torch.arange(100) % 3
    groups = torch.randint(0, 60, (100,), generator=generator)
    data = Data(inputs, targets, torch.arange(70), torch.arange(70, 100), ("a", "b", "c"), groups=groups)
    return Problem(data, torch.arange(20), torch.arange(20, 70), data.test)


@given(st.integers(0, 50), st.sampled_from(["retain", "test", "forget"]), st.integers(0, 2))
def test_no_held_out_example_nor_a_copy_is_trained_on(seed: int, source: str, k: int) -> None:
    if source == "forget" and k == 0:
        return
    p = problem(seed)
    ids = Relearn(source=source, k=k).training_ids(p)
    assert not torch.isin(p.data.group_of(ids), p.data.group_of(p.unexposed)).any()
    own = {"retain": p.retain, "test": p.test, "forget": p.forget[:0]}[source]
    assert torch.isin(ids, torch.cat([own, p.exposed])).all()
    groups = p.data.group_of(ids[torch.isin(ids, p.exposed)]).unique()
    assert len(groups) == k
    # Everything else of the source is used.
    related = torch.isin(p.data.group_of(own), p.data.group_of(p.unexposed))
    assert set(own[~related].tolist()) <= set(ids.tolist())


def test_a_source_without_examples_is_refused_where_it_is_made() -> None:
    with pytest.raises(SpecError, match=r"k: found 0, which leaves nothing"):
        Relearn(source="forget")
    with pytest.raises(SpecError, match=r"attack\.k: found 99"):
        Relearn(source="forget", k=99).training_ids(problem())


def test_each_source_runs() -> None:
    p = problem()
    model = MLP(widths=[8])(p.data)
    seen = {}
    for source in ("retain", "test", "forget"):
        attack = Relearn(source=source, k=1, epochs=2, points=2)
        done = attack(model, Case(0, p, model), 0)
        seen[source] = done.cost.gradients
        assert done.curve.values.shape[1] == len(p.unexposed)
        assert seen[source] == 2 * len(attack.training_ids(p))
    assert len(set(seen.values())) == 3
