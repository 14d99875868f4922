"""Models, builds and trainings of the user's that would give a wrong verdict are refused, with the evidence."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

import expunge
from expunge.base.errors import ExpungeError, SpecError
from expunge.core.case import Cost, Meter, Unlearned
from expunge.core.data import Data
from expunge.core.modules import parameters_digest

Train = Callable[[nn.Module, Dataset[Any]], object]
generator = torch.Generator().manual_seed(0)
X = torch.rand(120, 6, generator=generator)
Y = (X @ torch.rand(6, 3, generator=generator) + torch.rand(120, 3, generator=generator)).argmax(1)
PARTS = {"forget": (X[:20], Y[:20]), "retain": (X[20:80], Y[20:80]), "test": (X[80:], Y[80:])}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def train(model: nn.Module, dataset: Any, epochs: int = 40) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    model.train()
    for _ in range(epochs):
        for x, y in DataLoader(dataset, batch_size=20, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def full() -> Any:
    return torch.utils.data.TensorDataset(X[:80], Y[:80])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    made = build()
    train(made, full())
    return made


@pytest.fixture
def model(trained: nn.Module) -> nn.Module:
    """A copy for each test: DataParallel moves the model that it wraps to a device, if there is one."""
    return copy.deepcopy(trained)


KEPT = build()
BODY = build()[:3]


class Shallow(nn.Module):
    """A head of its own on the body of the user's model."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(32, 3)


def with_buffer_of(model: nn.Module) -> nn.Module:
    made = build()
    made[1].running_mean = model[1].running_mean  # type: ignore[index]
    return made


@pytest.mark.parametrize(
    "make",
    [
        lambda model: model,
        copy.copy,
        lambda model: nn.Sequential(*model),
        lambda model: nn.Sequential(*model[:3], nn.Linear(32, 3)),
        with_buffer_of,
        lambda model: nn.DataParallel(model),
        lambda model: KEPT,
        lambda model: nn.Sequential(*BODY, nn.Linear(32, 3)),
    ],
    ids=[
        "itself",
        "shallow copy",
        "its layers",
        "its body",
        "its buffer",
        "wrapped",
        "one for all",
        "one body for all",
    ],
)
def test_a_build_that_shares_memory_is_refused_before_anything_is_trained(
    model: nn.Module, make: Callable[[nn.Module], nn.Module]
) -> None:
    before = parameters_digest(model)
    with pytest.raises(SpecError, match=r"^recipe\.build: the module shares memory with .*weight|running_mean"):
        expunge.case(model, **PARTS, recipe=expunge.recipe(lambda: make(model), train))
    assert parameters_digest(model) == before


class Owned:
    """A recipe object whose models are the user's own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def build(self, seed: int) -> nn.Module:
        return self.module

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        return module


def test_a_recipe_object_is_checked_like_functions(model: nn.Module) -> None:
    with pytest.raises(SpecError, match="shares memory with your model"):
        expunge.case(model, **PARTS, recipe=Owned(model))


def test_a_training_that_takes_the_originals_tensors_is_refused(model: nn.Module) -> None:
    def assign(module: nn.Module, dataset: Any) -> None:
        train(module, dataset, 1)
        module.load_state_dict(model.state_dict(), assign=True)

    with pytest.raises(SpecError, match=r"recipe\.train: the module shares memory with your model"):
        audited(model, build, assign)


def in_place(model: nn.Module, problem: Any, recipe: Any, seed: int, budget: int | None) -> Unlearned:
    """A method of the user's that changes its argument."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return Unlearned(model, "in_place", Cost(0, 0.0))


def test_a_method_that_changes_its_argument_gets_a_copy(model: nn.Module) -> None:
    before = parameters_digest(model)
    done = expunge.unlearn(expunge.case(model, **PARTS), f"{__name__}:in_place")
    assert parameters_digest(model) == before != parameters_digest(done.model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(6, 31), nn.BatchNorm1d(31), nn.ReLU(), nn.Linear(31, 3)),
            r"0\.weight has shape",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 32), nn.Identity(), nn.ReLU(), nn.Linear(32, 3)), r"1\.weight is missing"),
        (lambda: nn.Sequential(*build(), nn.Linear(3, 3)), r"4\.weight is not part"),
        (lambda: nn.Sequential(nn.LazyLinear(32), *build()[1:]), r"0\.weight has no shape before"),
        (lambda: build, "found function"),
        (lambda: nn.Linear(), "the function failed"),  # type: ignore[call-arg]
    ],
    ids=["width", "no norm", "one layer more", "lazy", "no module", "needs arguments"],
)
def test_a_build_of_another_architecture_is_refused_before_training(
    model: nn.Module, make: Callable[[], Any], message: str
) -> None:
    def never(module: nn.Module, dataset: Any) -> None:
        raise AssertionError("a reference was trained")

    with pytest.raises(SpecError, match=rf"^recipe\.build: .*{message}"):
        expunge.case(model, **PARTS, recipe=expunge.recipe(make, never))


def test_what_is_no_recipe_is_refused(model: nn.Module) -> None:
    for wrong in (build, (build,), (build, None), {"build": build}):
        with pytest.raises(SpecError, match=r"^recipe: found"):
            expunge.case(model, **PARTS, recipe=wrong)  # type: ignore[arg-type]


def audited(model: nn.Module, make: Callable[[], nn.Module], fit: Train, **settings: Any) -> expunge.Result:
    case = expunge.case(model, **PARTS, recipe=expunge.recipe(make, fit))
    done = expunge.unlearn(case, "finetune", epochs=1)
    return expunge.audit(done, case, attacks=[], audits=[], **settings)


def trains_a_copy(module: nn.Module, dataset: Any) -> nn.Module:
    trained = copy.deepcopy(module)
    train(trained, dataset)
    return trained


def forgets_its_copy(module: nn.Module, dataset: Any) -> None:
    train(copy.deepcopy(module), dataset)


def averages(module: nn.Module, dataset: Any) -> nn.Module:
    train(module, dataset)
    return AveragedModel(module)


def only_statistics(module: nn.Module, dataset: Any) -> None:
    """Trains other parameters than the module's; only its running statistics move."""
    trained = copy.deepcopy(module)
    train(trained, dataset)
    for x, _ in DataLoader(dataset, batch_size=20):
        module.train()(x)


def on_everything(module: nn.Module, dataset: Any) -> None:
    train(module, full())


def one_look_then_everything(module: nn.Module, dataset: Any) -> None:
    assert len(dataset[0]) == 2
    train(module, full())


def seeded(module: nn.Module, dataset: Any) -> None:
    torch.manual_seed(1)
    for layer in module:  # type: ignore[attr-defined]
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    train(module, dataset)


def hardly(module: nn.Module, dataset: Any) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    for x, y in DataLoader(dataset, batch_size=20):
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (trains_a_copy, "it returns another module"),
        (averages, "it returns another module"),
        (forgets_its_copy, "training changed no weight"),
        (only_statistics, "training changed no weight"),
        (on_everything, "it read 0 of the 60 items"),
        (one_look_then_everything, "it read 1 of the 60 items"),
        (seeded, "equal those of 'seed 0: reference'"),
        (hardly, r"accuracy on 60 retain examples is .* for the original"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_training_that_makes_no_reference_is_refused(model: nn.Module, fit: Train, message: str) -> None:
    with pytest.raises(ExpungeError, match=message):
        audited(model, build, fit)


def test_a_training_that_loads_the_users_weights_is_refused(model: nn.Module) -> None:
    def load(module: nn.Module, dataset: Any) -> None:
        assert [dataset[i] for i in range(len(dataset))]
        module.load_state_dict(model.state_dict())

    with pytest.raises(SpecError, match="gave the weights of the original"):
        audited(model, build, load, references=1)


def test_shadow_models_are_checked_too(model: nn.Module) -> None:
    calls = []

    def alike_from_the_fourth_on(module: nn.Module, dataset: Any) -> None:
        calls.append(1)
        (seeded if len(calls) > 3 else train)(module, dataset)

    case = expunge.case(model, **PARTS, recipe=expunge.recipe(build, alike_from_the_fourth_on))
    done = expunge.unlearn(case, "finetune", epochs=1)
    with pytest.raises(SpecError, match=r"shadow (\w+) 1: its weights equal those of .*shadow \1 0"):
        expunge.audit(done, case, attacks=[], audits=[{"name": "u_lira", "shadows": 4}])


def test_trainings_that_are_right_are_taken(model: nn.Module) -> None:
    def with_workers(module: nn.Module, dataset: Any) -> nn.Module:
        """Reads in other processes, and returns the module that it was given, wrapped."""
        optimizer = torch.optim.Adam(module.parameters(), lr=2e-2)
        for _ in range(3):
            for x, y in DataLoader(dataset, batch_size=20, shuffle=True, num_workers=2):
                optimizer.zero_grad()
                F.cross_entropy(module.train()(x), y).backward()
                optimizer.step()
        by_ids = torch.utils.data.Subset(dataset.dataset, dataset.indices)
        train(module, by_ids)
        return nn.DataParallel(module)

    assert audited(model, lambda: nn.DataParallel(build()), with_workers, references=1).plan.references == 1


class Keeping(nn.Module):
    """Keeps its last features, as for a picture of them."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.features: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x)
        return self.head(self.features)


class Locked(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def hooked() -> nn.Module:
    made = build()
    made[0].register_forward_hook(lambda module, _, output: setattr(module, "seen", output))
    made.train()(X[:20])
    return made


def weight_normed() -> nn.Module:
    made = build()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(made[0])
    made(X[:20]).sum().backward()
    return made


def expanded() -> nn.Module:
    made = build()
    made.register_buffer("scale", torch.ones(1).expand(5))
    return made


class Generating(Locked):
    def __init__(self) -> None:
        super().__init__()
        self.lock = None  # type: ignore[assignment]
        self.stream = (number for number in range(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Keeping, "cannot be copied: features holds a tensor that is the result"),
        (hooked, r"cannot be copied: 0\.seen holds a tensor"),
        (weight_normed, r"cannot be copied: 0\.weight holds a tensor.*parametrizations"),
        (Locked, "cannot be copied: lock holds a lock"),
        (Generating, "cannot be copied: stream holds a generator"),
        (expanded, "elements of scale share memory"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"0\.weight has no shape before the first forward pass"),
    ],
    ids=["cached activation", "hook", "old weight norm", "lock", "generator", "expanded buffer", "lazy"],
)
def test_a_model_that_cannot_be_copied_is_refused_by_its_attribute(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        expunge.case(make(), **PARTS)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["parallel", "averaged", "compiled", "parallel and compiled"],
)
def test_a_wrapped_model_is_taken_out_and_said(
    model: nn.Module, wrap: Callable[[nn.Module], nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    case = expunge.case(wrap(model), **PARTS, recipe=expunge.recipe(build, train))
    assert list(case.original.state_dict()) == list(build().state_dict())
    assert "is used as the Sequential inside it" in capsys.readouterr().err


def sure(logits: Tensor) -> Tensor:
    return 10 * logits


@pytest.mark.parametrize(
    "last",
    [
        nn.Softmax(1),
        nn.Sequential(nn.Softmax(1), nn.Identity()),
        nn.Sequential(nn.Hardtanh(0.1, 1), nn.Softmax(-1)),
        nn.Sequential(nn.LogSoftmax(1), nn.Threshold(-3, -30), nn.Softmax(1)),
    ],
    ids=["softmax", "and identity", "flat", "sharp"],
)
def test_probabilities_are_no_logits(last: nn.Module) -> None:
    with pytest.raises(SpecError, match=r"its outputs are probabilities.*log_softmax"):
        expunge.case(nn.Sequential(*build(), last), **PARTS)
    # The logarithm of a softmax is a logit.
    expunge.case(nn.Sequential(*build(), nn.LogSoftmax(1)), **PARTS)


def test_sigmoids_are_no_logits_of_several_labels() -> None:
    parts = {name: (x, torch.stack([y == 0, y == 1, y > 0, y < 2], 1).long()) for name, (x, y) in PARTS.items()}
    expunge.case(nn.Linear(6, 4), **parts, objective="multilabel")
    with pytest.raises(SpecError, match=r"all lie between 0 and 1.*sigmoid"):
        expunge.case(nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()), **parts, objective="multilabel")


def test_results_and_cases_are_short_in_print(model: nn.Module) -> None:
    case = expunge.case(model, **PARTS, recipe=expunge.recipe(build, train))
    done = expunge.unlearn(case, "finetune", epochs=1)
    result = expunge.audit(done, case, attacks=[], audits=[], references=1)
    printed = [case, case.problem, case.problem.data, done, result, result.table, expunge.diagnose(case, ["hardness"])]
    for value in printed:
        assert len(repr(value)) < 500, type(value).__name__
    assert "finetune" in repr(done) and "forget 20, retain 60, test 40" in repr(case)


def test_the_error_of_every_call_is_exported() -> None:
    assert expunge.ExpungeError is ExpungeError and "ExpungeError" in expunge.__all__
    with pytest.raises(expunge.ExpungeError):
        expunge.case(nn.Linear(6, 3), forget=None, retain=None, test=None)
