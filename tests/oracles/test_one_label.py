"""Where examples have several labels, audits of hidden layers read the one that is forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from expunge.audits.in_context import InContext
from expunge.audits.object_occlusion import ObjectOcclusion
from expunge.audits.probe import Probe
from expunge.base.errors import SpecError
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.data.tetrominoes import Tetrominoes
from expunge.objectives.multilabel import Multilabel
from expunge.tasks.object_removal import ObjectRemoval

LABELS = 3
AUDITS = [Probe(layer="hidden", exposed=True, count=200), InContext(layer="hidden", demonstrations=(4, 8))]


class Hidden(nn.Module):
    """The hidden layer holds every label in the clear; the head is silent, so no answer shows it."""

    def __init__(self, seen: float) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(LABELS, LABELS), nn.Linear(LABELS, LABELS)
        with torch.no_grad():
            self.hidden.weight.copy_(seen * torch.eye(LABELS))
            self.head.weight.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(inputs))
        return logits


def problem_of(label: int, *, known: bool) -> Problem:
    """Each number of the input decides a label. Of examples to forget one label is known, and of some others none."""
    generator = torch.Generator().manual_seed(label)
    targets = torch.randint(2, (300, LABELS), generator=generator)
    inputs = targets + 0.1 * torch.randn(300, LABELS, generator=generator)
    train, test = torch.arange(200), torch.arange(200, 300)
    forget = train[targets[train, label] == 1]
    asked = targets.clone()
    asked[forget] = IGNORE
    asked[forget, label] = 1
    holdout, unseen = (test[targets[test, label] == value] for value in (1, 0))
    retain = train[~torch.isin(train, forget)]
    if not known:
        asked[retain[::3], label] = IGNORE
        asked[unseen[::3], label] = IGNORE
    data = Data(inputs, asked, train, test, ("a", "b", "c"), objective=Multilabel())
    return Problem(data, forget, retain, unseen, holdout=holdout)


@pytest.mark.parametrize("audit", AUDITS, ids=["probe", "in_context"])
@pytest.mark.parametrize(("label", "known"), [(0, True), (2, True), (1, False)])
def test_a_label_that_only_the_hidden_layer_knows_is_read(audit: Audit, label: int, known: bool) -> None:
    problem = problem_of(label, known=known)
    audit.check(problem)
    sees, blind = Hidden(1.0), Hidden(0.0)
    for model, low, high in ((sees, 0.99, 1.0), (blind, 0.0, 0.6)):
        first = next(s for s in audit(model, Case(0, problem, sees, None), 0) if s.role == "knowledge")
        assert first.split == "forget" and first.ids.tolist() == problem.unexposed.tolist()
        assert low <= first.values.mean() <= high


@pytest.mark.parametrize("audit", AUDITS, ids=["probe", "in_context"])
def test_examples_about_several_labels_are_refused_before_training(audit: Audit) -> None:
    problem = problem_of(0, known=True)
    targets = problem.data.targets.clone()
    targets[problem.forget[0], 1] = 0
    with pytest.raises(SpecError, match="about 2 labels"):
        audit.check(replace(problem, data=replace(problem.data, targets=targets), objective=None))


class LeftHalf(nn.Module):
    """Every logit is the sum of the left half of the image."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels, self.gain = labels, nn.Parameter(torch.tensor(0.01))

    def forward(self, images: Tensor) -> Tensor:
        total = images[..., : images.shape[3] // 2].sum((1, 2, 3))
        return self.gain * total.unsqueeze(1).expand(-1, self.labels)


@pytest.mark.parametrize("kind", [0, 2, 5])
def test_the_loss_rises_by_what_the_answer_rests_on(kind: int) -> None:
    """Of pieces that do not cover each other, black pixels are what the generator shows without them."""
    scenes, task = Tetrominoes(train=40, test=20, cells=6, pixels=3)(), ObjectRemoval(kind=kind, render="true")
    problem = task(scenes, 0, task.measure(scenes, None, 0))  # type: ignore[arg-type]
    model = LeftHalf(len(scenes.labels))
    found = {scores.metric: scores for scores in ObjectOcclusion()(model, Case(0, problem, model, None), 0)}
    for row, index in enumerate(problem.unexposed.tolist()):
        image, mask = scenes.inputs[index], scenes.masks[index]
        own = [number for number, of in enumerate(scenes.kinds[index].tolist(), 1) if of == kind]

        def loss(gone: list[int], image: Tensor = image, mask: Tensor = mask) -> float:
            left = image.masked_fill(torch.isin(mask, torch.tensor(gone)), 0)[..., : image.shape[2] // 2]
            return float(nn.functional.softplus(-0.01 * left.sum()))

        others = [loss([number]) - loss([]) for number in range(1, 4) if number not in own]
        rise = loss(own) - loss([])
        assert found["occluded"].values[row] == pytest.approx(rise, abs=1e-5)
        assert found["occluded_other"].values[row] == pytest.approx(max(others, default=0.0), abs=1e-5)
        if abs(rise - max([*others, 0.0])) > 1e-4:
            assert found["carrier"].values[row] == float(rise > max([*others, 0.0]))
    assert {scores.role for scores in found.values()} == {"description"}


def test_occlusion_needs_examples_that_name_their_object() -> None:
    scenes = Tetrominoes(train=40, test=20, cells=6, pixels=3)()
    problem = Problem(scenes, scenes.train[:5], scenes.train[5:], scenes.test)
    with pytest.raises(SpecError, match="labelled by all of their objects"):
        ObjectOcclusion().check(problem)
