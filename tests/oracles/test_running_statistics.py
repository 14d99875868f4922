"""Norms with running statistics: what may move them, one example, and answers that depend on the rest of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from _toy import classes
from torch import Tensor, nn

import expunge
from expunge.attacks.relearn import Relearn
from expunge.base import registry
from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.core.norms import held_statistics
from expunge.core.problem import Problem
from expunge.core.recompute import checkpointed
from expunge.methods.finetune import Finetune
from expunge.train.evaluation import known
from expunge.train.training import TrainedRecipe, Training

CHANNELS = 2


class OwnNorm(nn.Module):
    """A norm of a user's, whose statistics have names of their own."""

    def __init__(self, *, batch_in_evaluation: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CHANNELS, 1))
        self.register_buffer("mean", torch.zeros(CHANNELS, 1))
        self.batch_in_evaluation = batch_in_evaluation

    def forward(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean((0, 2))[:, None]
        own = self.training or self.batch_in_evaluation
        return self.scale * (hidden - (hidden.mean((0, 2))[:, None] if own else self.mean))


class Mixing(nn.Module):
    """Each example attends to all examples of the batch."""

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(1)
        return ((flat @ flat.T).softmax(1) @ flat).view_as(hidden)


def plain(norm: nn.Module) -> nn.Module:
    return norm


def without_scale(norm: nn.Module) -> nn.Module:
    """A norm without parameters, which is frozen with the layer around it."""
    return nn.Sequential(nn.Conv1d(CHANNELS, CHANNELS, 1), norm)


# Each is called with hidden states [b, 2, 4], of these shapes where the kind needs another one.
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm of vectors": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.Unflatten(1, (CHANNELS, 4))),
    "batch norm of sequences": lambda: nn.BatchNorm1d(CHANNELS),
    "batch norm of images": lambda: nn.Sequential(nn.Unflatten(2, (2, 2)), nn.BatchNorm2d(CHANNELS)),
    "batch norm of volumes": lambda: nn.Sequential(nn.Unflatten(2, (2, 2, 1)), nn.BatchNorm3d(CHANNELS)),
    "batch norm over processes": lambda: nn.SyncBatchNorm(CHANNELS),
    "plain average over batches": lambda: nn.BatchNorm1d(CHANNELS, momentum=None),
    "instance norm": lambda: nn.InstanceNorm1d(CHANNELS, affine=True, track_running_stats=True),
    "norm of the user's": OwnNorm,
    "without parameters": lambda: without_scale(nn.BatchNorm1d(CHANNELS, affine=False)),
}


def normed(norm: Callable[[], nn.Module], *, frozen: bool = False) -> nn.Module:
    """A body that ends in a norm, and a head."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 8), nn.Unflatten(1, (CHANNELS, 4)), norm(), nn.Flatten())
    body.requires_grad_(not frozen)
    return nn.Sequential(body, nn.Tanh(), nn.Linear(8, 3)).double()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved(before: dict[str, Tensor], after: nn.Module) -> list[str]:
    return [name for name, buffer in after.named_buffers() if not torch.equal(before[name], buffer)]


def finetune(model: nn.Module, batch_size: int = 6) -> nn.Module:
    return Finetune(epochs=2, batch_size=batch_size)(model, classes(), None, 0).model


def relearn(model: nn.Module, batch_size: int = 6) -> nn.Module:
    return Relearn(epochs=2, batch_size=batch_size)(model, Case(0, classes(), model), 0).model


def train(model: nn.Module, batch_size: int = 6) -> nn.Module:
    data = classes().data
    recipe = TrainedRecipe(lambda _: model, Training(epochs=2, batch_size=batch_size), data)
    return recipe.fit(copy.deepcopy(model), data, data.train, 0)


# --- Frozen parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [finetune, relearn, train])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_in_a_frozen_part_keeps_its_statistics(name: str, step: Callable[[nn.Module], nn.Module]) -> None:
    model = normed(NORMS[name], frozen=True)
    before = statistics(model)
    after = step(model)
    assert before and not moved(before, after)
    assert not torch.equal(after[2].weight, model[2].weight)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_that_is_trained_moves_its_statistics(name: str) -> None:
    model = normed(NORMS[name])
    assert moved(statistics(model), finetune(model))


def test_a_norm_with_one_trained_parameter_is_not_frozen() -> None:
    model = normed(lambda: nn.BatchNorm1d(CHANNELS), frozen=True)
    model[0][2].bias.requires_grad_(True)
    assert moved(statistics(model), finetune(model))


def test_one_frozen_norm_of_two_keeps_its_statistics() -> None:
    model = normed(lambda: nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.Tanh(), nn.BatchNorm1d(CHANNELS)))
    model[0][2][0].requires_grad_(False)
    names = {name.rpartition(".")[0] for name in moved(statistics(model), finetune(model))}
    assert names == {"0.2.2"}


# --- Batches of forget examples alone --------------------------------------------------------------------------------

FORGETTING: dict[str, dict[str, object]] = {
    "gradient_ascent": {"epochs": 3, "chances": 0.01},
    "delete": {"epochs": 3},
    "neggrad_plus": {},
    "neggrad_plus, alternating": {"alternate": True},
    "npo": {},
    "random_relabel": {},
    "salun": {},
    "scrub": {},
    "noisy_distillation": {},
    "circuit_breakers": {"layers": ("0",)},
}


def far_apart(norm: Callable[[], nn.Module]) -> tuple[nn.Module, Problem]:
    """A model whose norm sees the inputs, of which those to forget are far from all others, with labels that it knows.

    Any batch of them would move the running mean by far.
    """
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 8), nn.Unflatten(1, (CHANNELS, 4)), norm(), nn.Flatten())
    with torch.no_grad():
        body[0].weight.abs_()
    model, problem = nn.Sequential(body, nn.Tanh(), nn.Linear(8, 3)).double().eval(), classes()
    data = problem.data.with_inputs(problem.forget, lambda row: row + 1000)
    with torch.no_grad():
        data = data.relabelled(problem.forget, model(data.inputs[problem.forget]).argmax(1))
    problem = replace(problem, data=data)
    assert known(model, problem, problem.forget).all()
    return model, problem


def largest_statistic(model: nn.Module) -> float:
    means = [b for name, b in model.named_buffers() if "mean" in name]
    return max(float(mean.abs().max()) for mean in means)


@pytest.mark.parametrize("label", FORGETTING)
def test_no_method_moves_statistics_by_forget_examples_alone(label: str) -> None:
    model, problem = far_apart(lambda: nn.BatchNorm1d(CHANNELS))
    settings = {"learning_rate": 1e-9} | FORGETTING[label]
    method = registry.build("method", label.partition(",")[0], settings, where="method")
    done = method(model, problem, None, 0)
    assert done.cost.gradients and largest_statistic(done.model) < 10


@pytest.mark.parametrize("name", NORMS)
def test_no_norm_is_moved_by_forget_examples_alone(name: str) -> None:
    model, problem = far_apart(NORMS[name])
    method = registry.build("method", "npo", {"learning_rate": 1e-9, "epochs": 2}, where="method")
    after = method(model, problem, None, 0).model
    assert largest_statistic(after) < 10 and moved(statistics(model), after)


def test_beside_retain_batches_the_forget_batch_has_its_own_statistics() -> None:
    """One step of descent on both losses, by hand: two passes in training mode, and the statistics of the first."""
    problem, model = classes(), normed(lambda: nn.BatchNorm1d(CHANNELS))
    settings = {"epochs": 1, "batch_size": 99, "forget_batch_size": 99, "optimizer": "sgd", "learning_rate": 0.1}
    method = registry.build("method", "neggrad_plus", {"alpha": 0.7, **settings}, where="method")
    done = method(model, problem, None, 0).model
    hand, data = copy.deepcopy(model).train(), problem.data
    kept = nn.functional.cross_entropy(hand(data.inputs[problem.retain]), data.targets[problem.retain])
    expected = statistics(hand)
    lost = nn.functional.cross_entropy(hand(data.inputs[problem.forget]), data.targets[problem.forget])
    (0.7 * kept - 0.3 * lost).backward()
    for after, before in zip(done.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad)
    assert moved(expected, hand) and all(
        torch.allclose(value, done.get_buffer(name)) for name, value in expected.items()
    )


def test_a_method_without_retain_batches_trains_the_deployed_function() -> None:
    """One step of fine-tuning on the forget set, by hand: its gradient is that of the model in evaluation mode."""
    problem, model = classes(), normed(lambda: nn.BatchNorm1d(CHANNELS))
    model[0][2].running_mean += 0.5
    settings = {"epochs": 1, "batch_size": 99, "optimizer": "sgd", "learning_rate": 0.1, "strength": 1.0}
    method = registry.build("method", "task_negation", settings, where="method")
    done = method(model, problem, None, 0).model
    hand, data = copy.deepcopy(model).eval(), problem.data
    nn.functional.cross_entropy(hand(data.inputs[problem.forget]), data.targets[problem.forget]).backward()
    for after, before in zip(done.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.1 * before.grad)


def test_held_statistics_allow_a_backward_pass_through_two_batches() -> None:
    model, rows = normed(lambda: nn.BatchNorm1d(CHANNELS)).train(), classes().data.inputs
    before = statistics(model)
    with held_statistics(model):
        first = model(rows[:6])
    assert not moved(before, model)
    (first.sum() + model(rows[6:]).sum()).backward()
    assert moved(before, model)


def test_a_layer_that_is_recomputed_moves_its_statistics_once() -> None:
    once, twice = (normed(lambda: nn.BatchNorm1d(CHANNELS)).train() for _ in range(2))
    checkpointed(twice, "0")
    for model in (once, twice):
        model(classes().data.inputs).sum().backward()
    assert not moved(statistics(once), twice)


# --- One example -----------------------------------------------------------------------------------------------------

ALONE = [*(name for name in FORGETTING if "," not in name), "task_negation", "tar"]


@pytest.mark.parametrize("name", ALONE)
def test_one_forget_example_is_enough(name: str) -> None:
    model, problem = far_apart(NORMS["batch norm of vectors"])
    problem = replace(problem, forget=problem.forget[:1])
    settings = {"outer_steps": 2} if name == "tar" else FORGETTING.get(name, {})
    done = registry.build("method", name, settings, where="method")(model, problem, None, 0)
    assert done.cost.gradients and all(bool(t.isfinite().all()) for t in done.model.state_dict().values())


def test_an_attacker_with_one_example_and_no_other_data_trains_on_it() -> None:
    model, problem = normed(NORMS["batch norm of vectors"]), classes()
    done = Relearn(k=1, source="forget", epochs=2)(model, Case(0, problem, model), 0)
    assert done.cost.gradients == 2 and not moved(statistics(model), done.model)


@pytest.mark.parametrize("step", [finetune, relearn, train])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batches_of_one_are_refused_with_a_remedy(norm: type[nn.Module], step: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(5, 4), norm(4), nn.Linear(4, 3)).double()
    with pytest.raises(SpecError, match=r"a batch of one example reached batch norm.*batch_size to 2 or more"):
        step(model, batch_size=1)


# --- Answers that depend on the batch --------------------------------------------------------------------------------

MIXED: dict[str, Callable[[], nn.Module]] = {
    "batch norm of images": lambda: nn.Sequential(
        nn.Unflatten(2, (2, 2)), nn.BatchNorm2d(CHANNELS, track_running_stats=False)
    ),
    "batch norm of sequences": lambda: nn.BatchNorm1d(CHANNELS, track_running_stats=False),
    "batch norm over processes": lambda: nn.SyncBatchNorm(CHANNELS, track_running_stats=False),
    "norm of the user's": lambda: OwnNorm(batch_in_evaluation=True),
    "attention between examples": Mixing,
}


def make_case(model: nn.Module) -> Case:
    problem = classes()
    parts = {
        name: (problem.data.inputs[ids], problem.data.targets[ids])
        for name, ids in (("forget", problem.forget), ("retain", problem.retain), ("test", problem.test))
    }
    return expunge.case(model, **parts)


@pytest.mark.parametrize("name", MIXED)
def test_a_model_whose_answer_depends_on_the_batch_is_refused(name: str) -> None:
    model = normed(MIXED[name])
    with pytest.raises(SpecError, match=r"its answer on an example changes with the other examples") as refusal:
        make_case(model)
    if name.startswith("batch norm"):
        assert "without running statistics are 0.2" in str(refusal.value)


@pytest.mark.parametrize(
    "norm",
    [
        *NORMS.values(),
        lambda: nn.InstanceNorm1d(CHANNELS),
        lambda: nn.GroupNorm(1, CHANNELS),
        lambda: nn.Dropout(0.5),
    ],
)
def test_other_models_are_not_refused_for_their_batches(norm: Callable[[], nn.Module]) -> None:
    model = normed(norm)
    assert make_case(model).original is model


def test_recalibration_leaves_frozen_norms_alone() -> None:
    recalibrate = registry.build("attack", "recalibrate", {}, where="attack")
    model = normed(lambda: nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)))
    model[0][2][0].requires_grad_(False)
    done = recalibrate(model, Case(0, classes(), model), 0).model
    assert {name.rpartition(".")[0] for name in moved(statistics(model), done)} == {"0.2.1"}
    with pytest.raises(MissingError, match="running statistics that may change"):
        recalibrate.check_model(normed(lambda: nn.BatchNorm1d(CHANNELS), frozen=True))
