"""Each objective against PyTorch's or scikit-learn's own numbers, and models with several inputs and outputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.nn import functional as F

import expunge
from expunge.base.errors import MissingError, SpecError
from expunge.core.data import Data
from expunge.core.decisions import correct
from expunge.core.objective import Objective

IDS = torch.arange(6)
TRAIN, TEST = IDS[:4], IDS[4:]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_of(inputs: Any, targets: Tensor, name: str | None = None, **settings: Any) -> Data:
    return Data(inputs, targets, TRAIN, TEST, objective=expunge.objective(name, **settings) if name else None)


class Says(nn.Module):
    """Returns a fixed output, row by row of its input, in whatever form it is given."""

    def __init__(self, output: Tensor, form: Any = None) -> None:
        super().__init__()
        self.output, self.form = nn.Parameter(output), form

    def forward(self, inputs: Tensor) -> Any:
        rows = self.output[inputs.flatten(1)[:, 0].long()]
        return rows if self.form is None else self.form(rows)


def rows(*shape: int) -> Tensor:
    """Inputs that number the examples."""
    return torch.arange(6.0).view(6, *[1] * len(shape)).expand(6, *shape).contiguous()


def test_multilabel_loss_is_binary_cross_entropy() -> None:
    logits, targets = torch.randn(6, 3, generator=generator()).double(), torch.tensor([[0, 1, 1]] * 5 + [[1, 0, -100]])
    data, model = data_of(rows(2), targets, "multilabel"), Says(logits)
    batch = data.batch(IDS)
    known = targets != -100
    expected = F.binary_cross_entropy_with_logits(logits[known], targets[known].double())
    torch.testing.assert_close(data.objective.loss(model, batch), expected, rtol=1e-12, atol=0)
    shares = [((logits[i] > 0) == targets[i].bool())[known[i]].double().mean() for i in range(6)]
    assert data.objective.measure(model, batch)["accuracy"].tolist() == [float(share) for share in shares]
    assert data.objective.relabel(batch, generator()).targets.tolist() == [[1, 0, 0]] * 5 + [[0, 1, -100]]
    assert data.labels == ("0", "1", "2") and data.objective.outputs == 3


def test_segmentation_ignores_unlabelled_pixels() -> None:
    logits = torch.randn(6, 4, 3, 2, generator=generator()).double()
    masks = torch.randint(0, 4, (6, 3, 2), generator=generator(1))
    masks[:, 0, 0] = 255
    data, model = data_of(rows(1, 3, 2), masks, "segmentation", ignore=255), Says(logits)
    batch = data.batch(IDS)
    expected = F.cross_entropy(logits, masks, ignore_index=255)
    torch.testing.assert_close(data.objective.loss(model, batch), expected, rtol=1e-12, atol=0)
    right = (logits.argmax(1) == masks)[masks != 255].view(6, 5).double().mean(1)
    assert torch.equal(data.objective.measure(model, batch)["accuracy"], right)
    wrong = data.objective.relabel(batch, generator()).targets
    assert ((wrong == masks) == (masks == 255)).all() and wrong.max() <= 255
    assert len(data.objective.decisions(model, batch).targets) == 30


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_regression_explains_variance_as_scikit_learn_counts_it(shape: tuple[int, ...]) -> None:
    targets = torch.randn(shape, generator=generator()).double()
    output = targets + 0.3 * torch.randn(shape, generator=generator(1)).double()
    data, model = data_of(rows(2), targets), Says(output)
    batch, objective = data.batch(TRAIN), data.objective
    torch.testing.assert_close(objective.loss(model, batch), F.mse_loss(output[TRAIN], targets[TRAIN]))
    with torch.no_grad():
        values = objective.measure(model, batch)
    flat = (targets[TRAIN].view(4, -1), output[TRAIN].view(4, -1))
    if len(shape) == 1 or shape[1] == 1:
        assert float(values["r_squared"].mean()) == pytest.approx(r2_score(*(v.detach().numpy() for v in flat)))
    assert float(values["absolute_error"].mean()) == pytest.approx(float((flat[0] - flat[1]).abs().mean()))
    drawn = objective.relabel(batch, generator()).targets
    assert (
        drawn.shape == batch.targets.shape
        and targets[TRAIN].min() <= drawn.min() <= drawn.max() <= targets[TRAIN].max()
    )
    with pytest.raises(MissingError, match="Regression makes no decisions"):
        objective.decisions(model, batch)


def test_reconstruction_compares_with_the_inputs() -> None:
    inputs = torch.randn(6, 1, 4, 4, generator=generator())
    data, objective = data_of(inputs, torch.zeros(6).long(), "reconstruction"), expunge.objective("reconstruction")
    assert isinstance(objective, Objective)
    values = data.objective.measure(nn.Identity(), data.batch(IDS))
    assert values["r_squared"].tolist() == [1.0] * 6 and values["absolute_error"].tolist() == [0.0] * 6
    mean = inputs[TRAIN].mean(0, keepdim=True)
    constant = nn.Sequential(nn.Flatten(), _Constant(mean.flatten()))
    with torch.no_grad():
        explained = data.objective.measure(constant, data.batch(TRAIN))["r_squared"].mean()
    assert float(explained) == pytest.approx(0, abs=1e-6), "the training mean explains nothing"
    with pytest.raises(MissingError, match="no wrong targets"):
        data.objective.relabel(data.batch(IDS), generator())
    with pytest.raises(SpecError, match="the shape of the inputs"):
        data.objective.measure(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), data.batch(IDS))


class _Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.value.expand(len(inputs), -1)


def test_complex_inputs_are_reconstructed_by_their_distance() -> None:
    inputs = torch.randn(6, 3, generator=generator(), dtype=torch.complex64)
    data = data_of(inputs, torch.zeros(6).long(), "reconstruction")
    turned = data.objective.errors(_Turn(), data.batch(IDS))
    torch.testing.assert_close(turned, 2 * inputs.abs())


class _Turn(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return -inputs


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        (torch.zeros(6).long(), "Classification"),
        (torch.full((6,), 0.5), "Regression"),
        (torch.full((6, 2), 0.5), "Regression"),
    ],
)
def test_what_is_obvious_is_inferred(targets: Tensor, name: str) -> None:
    assert type(data_of(rows(2), targets).objective).__name__ == name


@pytest.mark.parametrize("targets", [torch.zeros(6, 3).long(), torch.zeros(6, 4, 4).long(), torch.zeros(6, 2, 2)])
def test_what_is_not_obvious_is_asked_for(targets: Tensor) -> None:
    with pytest.raises(SpecError, match=r"are ambiguous.*\[objective\]"):
        data_of(rows(3), targets).judged_by(None)


@pytest.mark.parametrize(
    ("name", "targets", "said"),
    [
        ("multilabel", torch.full((6, 2), 2), "label 2 (example 0) is outside the classes"),
        ("multilabel", torch.zeros(6, 2), "as whole numbers"),
        ("multilabel", torch.full((6, 2), -100), "6 examples have no decision"),
        ("segmentation", torch.zeros(6, 2).long(), "masks [n, h, w]"),
        ("classification", torch.zeros(6), "class indices, as whole numbers"),
        ("classification", torch.tensor([0, 1, -1, 0, 1, 1]), "label -1 (example 2)"),
        ("regression", torch.zeros(6).long(), "floating-point numbers"),
        ("regression", torch.tensor([0.0, 1, float("nan"), 1, 1, 1]), "target of example 2 is not finite"),
        ("language_modelling", torch.zeros(6, 5).long(), "one target per token"),
    ],
)
def test_targets_that_do_not_fit_are_refused(name: str, targets: Tensor, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        data_of(rows(3), targets, name)
    assert said in str(caught.value)


# --- Models with several outputs and inputs ---------------------------------------------------------------------------


@dataclass
class Answer:
    features: Tensor
    scores: Tensor


FORMS: dict[str, tuple[Any, Any]] = {
    "tensor": (None, None),
    "tuple": (lambda x: (x + 9, x), 1),
    "list": (lambda x: [x, x + 9], 0),
    "dict": (lambda x: {"loss": x.sum(), "mask": x}, "mask"),
    "logits in a dict": (lambda x: {"hidden": x + 9, "logits": x}, None),
    "dataclass": (lambda x: Answer(x + 9, x), "scores"),
    "ordered dict": (lambda x: OrderedDict(out=x), "out"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_output_that_holds_predictions_is_named(form: str) -> None:
    make, output = FORMS[form]
    data = data_of(rows(2), torch.tensor([0, 1, 2, 0, 1, 2]), "classification", output=output)
    decisions = data.objective.decisions(Says(torch.eye(3).repeat(2, 1), make), data.batch(IDS))
    assert correct(decisions).all()


@pytest.mark.parametrize(
    ("form", "output", "said"),
    [
        (lambda x: (x, x), None, "a tuple of 2 values: several outputs"),
        (lambda x: (x, x), 2, "a tuple of 2 values: no output 2"),
        (lambda x: {"a": x, "b": x}, None, "a dict with keys 'a', 'b': several outputs"),
        (lambda x: Answer(x, x), None, "a Answer with attributes features, scores: several outputs"),
        (lambda x: Answer(x, x), "score", "no output 'score'"),
        (lambda x: x, "logits", "no output 'logits'"),
        (lambda x: None, None, "a NoneType"),
    ],
)
def test_an_output_that_is_not_clear_is_asked_for(form: Any, output: Any, said: str) -> None:
    data = data_of(rows(2), torch.tensor([0, 1, 2, 0, 1, 2]), "classification", output=output)
    with pytest.raises(SpecError) as caught:
        data.objective.decisions(Says(torch.eye(3).repeat(2, 1), form), data.batch(IDS))
    assert said in str(caught.value) and "output = ..." in str(caught.value)


class Two(nn.Module):
    """Adds two inputs; the second is optional by position and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, image: Tensor, context: Tensor) -> Tensor:
        return self.linear(image) + context.float()[:, None]


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_models_with_several_inputs_train_and_are_judged(form: str) -> None:
    image, context = torch.randn(6, 3, generator=generator()), torch.arange(6)
    inputs: Any = (image, context) if form == "tuple" else {"image": image, "context": context}
    data, model = data_of(inputs, torch.tensor([0, 1, 0, 1, 0, 1])), Two()
    batch = data.batch(torch.tensor([3, 1]))
    expected = model(image[[3, 1]], context[[3, 1]])
    assert torch.equal(data.objective.decisions(model, batch).logits, expected)
    data.objective.loss(model, batch).backward()
    assert model.linear.weight.grad is not None
    broken = image.clone()
    broken[2, 0] = float("inf")
    place = {"tuple": r"data\.inputs\[0\]", "mapping": r"data\.inputs\['image'\]"}[form]
    with pytest.raises(SpecError, match=place):
        data_of((broken, context) if form == "tuple" else {"image": broken, "context": context}, data.targets)
    with pytest.raises(SpecError, match="5 inputs but 6 targets"):
        data_of((image, context[:5]), data.targets)
