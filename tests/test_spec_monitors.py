"""Monitors that a spec names: they watch the recipe's training, change no bit of it, and leave plain records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.base.errors import SpecError
from expunge.base.spec import parse
from expunge.core.case import train_model
from expunge.core.modules import state_digest
from expunge.data.digits import Digits
from expunge.data.python_docs import PythonDocs
from expunge.models.mlp import MLP
from expunge.pipeline.parts import Parts
from expunge.train.monitors.feature_loss import FeatureLoss
from expunge.train.monitors.sharpness import Sharpness
from expunge.train.training import TrainedRecipe, Training
from helpers import tiny

DATA = Digits(train=120, test=20)()


def recipe(**monitors: Any) -> TrainedRecipe:
    training = Training(epochs=3, batch_size=20, optimizer="sgd", learning_rate=0.05)
    return TrainedRecipe(MLP(widths=[8]), training, DATA, monitors)


def test_a_watched_training_gives_the_same_bits_and_a_record() -> None:
    plain, watched = recipe(), recipe(sharp=Sharpness(every=6, examples=30), fade=FeatureLoss(every=9))
    digests = {state_digest(train_model(r, DATA, DATA.train, 5)) for r in (plain, watched)}
    assert len(digests) == 1 and plain.records == {}
    records = json.loads(json.dumps(watched.records, allow_nan=False))
    assert records["sharp"]["step"] == [0, 6, 12, 18] and records["fade"]["step"] == [0, 9, 18]
    assert records["sharp"]["edge"] == pytest.approx([2 * 1.9 / 0.05] * 4)
    assert all(value > 0 for value in records["sharp"]["sharpness"])
    assert 0 < records["fade"]["alignment"][0] < records["fade"]["alignment"][-1] <= 1
    # Another training replaces it.
    train_model(watched, DATA, DATA.train[:20], 5)
    assert watched.records["sharp"]["step"] == [0]


def test_sharpness_is_that_of_the_training_loss_on_the_examples_drawn() -> None:
    """Held against the dense Hessian of the same examples."""
    monitor = Sharpness(every=1, examples=25)
    torch.manual_seed(0)
    model = MLP(widths=[3])(DATA).double()
    watcher = monitor(DATA, DATA.train, torch.optim.Adam(model.parameters()), 7)
    watcher(0, model)
    (batch,) = watcher.batches
    assert len(batch.ids) == len(batch.ids.unique()) == 25 and set(batch.ids.tolist()) <= set(DATA.train.tolist())
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def value(flat: torch.Tensor) -> torch.Tensor:
        pieces = [p.view(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        logits = torch.func.functional_call(
            model, dict(zip(names, pieces, strict=True)), batch.inputs.double().flatten(1)
        )
        return torch.nn.functional.cross_entropy(logits, batch.targets)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(value, flat)
    assert watcher.sharpness[0] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-4)
    assert watcher.edges == [math.inf]


def test_what_has_no_classes_has_no_class_means() -> None:
    texts = PythonDocs(train=20, test=4)()
    with pytest.raises(SpecError, match=r"feature_loss: the objective is LanguageModelling.*leave this monitor out"):
        FeatureLoss()(texts, texts.train, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), 0)


def parts(*monitors: dict[str, Any]) -> Parts:
    return Parts(parse(tiny(monitor=list(monitors)), Path()))


def test_a_spec_names_monitors_and_the_recipe_has_them_where_it_is_watched() -> None:
    made = parts({"name": "sharpness", "every": 10}, {"name": "feature_loss", "label": "fade"})
    assert made.monitors == {"sharpness": Sharpness(every=10), "fade": FeatureLoss()}
    assert made.recipe(DATA, watched=True).monitors == made.monitors and not made.recipe(DATA).monitors
    assert made.resolved()["monitor"][1] == {"name": "feature_loss", **FeatureLoss().settings(), "label": "fade"}
    assert "monitor" not in parts().resolved()
    with pytest.raises(SpecError, match=r"monitor\[0\].name: unknown monitor 'sharpnes'.*did you mean 'sharpness'"):
        parts({"name": "sharpnes"})
    with pytest.raises(SpecError, match=r"monitor\[0\].drop: found 2"):
        parts({"name": "feature_loss", "drop": 2})
