"""The map of answers: the plane of the original's main directions, the same for every model and every time."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.pipeline.cloud import Cloud


def problem() -> Problem:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = Data(inputs, torch.arange(60) % 3, torch.arange(40), torch.arange(40, 60))
    return Problem(data, torch.arange(10), torch.arange(10, 40), torch.arange(40, 60))


def test_the_plane_is_that_of_the_originals_main_directions() -> None:
    torch.manual_seed(0)
    case, model = problem(), nn.Linear(4, 3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.bias += torch.tensor([1.0, 0.0, 0.0])
    cloud = Cloud.of(case)
    for each in (model, other, model):
        cloud.add(each, case)
    sets = cloud.as_json()["sets"]
    assert list(sets) == ["forget", "retained", "unseen"] and sets["forget"] == len(case.unexposed)
    first, moved, again = (np.array(places) for places in cloud.places)
    assert np.array_equal(first, again)
    # Three logits without their mean span a plane, so that all distances are kept.
    ids = torch.cat(list(cloud.ids.values()))
    logits = model(case.data.inputs[ids]).detach().double()
    logits = (logits - logits.mean(1, keepdim=True)).numpy()
    distances = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (first, logits)]
    assert np.allclose(*distances, atol=0.03)
    # The same change of every logit moves every point alike.
    assert np.ptp(moved - first, axis=0).max() < 0.03 and np.abs(moved - first).max() > 0.3


def test_data_without_classes_have_no_map() -> None:
    case = problem()
    numbers = Data(case.data.inputs, torch.randn(60, 1), case.data.train, case.data.test)
    cloud = Cloud.of(Problem(numbers, case.forget, case.retain, case.test))
    cloud.add(nn.Linear(4, 1), case)
    assert not cloud.ids and cloud.places == []
