"""Sums in bfloat16 models, bfloat16 forward passes, micro-batches and recomputed activations."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from expunge.attacks.relearn import Relearn
from expunge.audits.curvature import Curvature
from expunge.base.errors import SpecError
from expunge.blocks import put
from expunge.blocks.tied_dropout import TiedDropout, base_only
from expunge.core.case import Case, Meter
from expunge.core.decisions import loss
from expunge.core.device import computing
from expunge.core.recompute import checkpointed, micro_batches
from expunge.core.seeding import forked
from expunge.data.digits import Digits
from expunge.methods._gradients import mean_absolute_gradient, mean_squared_gradient, summed_gradient
from expunge.methods.lfssd import squared_norm
from expunge.methods.neggrad_plus import NegGradPlus
from expunge.testing._settings import MEMORY, PLAIN, REGULARISED, TOKENS, Setting, every_setting
from expunge.train.training import Training

SETTINGS = {setting.name: setting for setting in every_setting()}


def in_both(setting: Setting) -> tuple[nn.Module, nn.Module]:
    """A model in bfloat16, and one in float32 with the same weights."""
    coarse = setting.model().to(torch.bfloat16).eval()
    return coarse, copy.deepcopy(coarse).float()


@pytest.mark.parametrize("name", [PLAIN, REGULARISED, TOKENS])
@pytest.mark.parametrize(
    "measure",
    [
        lambda m, p: mean_squared_gradient(m, p, many(p), Meter()),
        lambda m, p: mean_absolute_gradient(m, p, many(p), Meter(), squared_norm),
        lambda m, p: summed_gradient(m, p, many(p), Meter(), 1),
    ],
)
def test_importances_of_a_bfloat16_model(name: str, measure: Callable[..., list[Tensor]]) -> None:
    setting = SETTINGS[name]
    coarse, fine = (measure(model, setting.problem) for model in in_both(setting))
    ours, theirs = (torch.cat([entry.abs().double().flatten() for entry in found]).sum() for found in (coarse, fine))
    assert float(ours) == pytest.approx(float(theirs), rel=0.02)
    assert all(entry.dtype == torch.float32 for entry in coarse)


def many(problem: object) -> Tensor:
    """Each example many times: a sum in bfloat16 would stop to grow after some 256 terms."""
    return problem.train.repeat(20)  # type: ignore[attr-defined]


def test_curvature_is_computed_in_float32() -> None:
    setting = SETTINGS[PLAIN]
    case, audit = Case(0, setting.problem, setting.model(), setting.recipe()), Curvature()
    plain = [scores.values[0] for scores in audit(case.original, case, 5)]
    with computing("bf16"):
        found = [scores.values[0] for scores in audit(case.original, case, 5)]
    assert found == plain


def test_bf16_keeps_weights_and_losses_in_float32() -> None:
    setting, seen = SETTINGS[PLAIN], []
    model = setting.model()
    model.second.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    batch = setting.problem.data.batch(setting.problem.train)
    with computing("bf16"):
        value = loss(setting.problem.objective.decisions(model, batch))
    value.backward()
    assert seen == [torch.bfloat16] and value.dtype == torch.float32
    assert model.second.weight.grad.dtype == torch.float32
    plain = loss(setting.problem.objective.decisions(model, batch))
    assert 0 < abs(float((plain - value).detach())) < 0.02 and seen[1] == torch.float32


def test_bf16_trains_as_well() -> None:
    setting = SETTINGS[PLAIN]
    with computing("bf16"):
        model = setting.model()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    batch = setting.problem.data.batch(setting.problem.train)
    losses = [float(setting.problem.objective.loss(m, batch).detach()) for m in (model, setting.model())]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SpecError, match="float32 or bf16"), computing("fp8"):  # type: ignore[arg-type]
        pass


def gradients(value: Tensor, model: nn.Module) -> list[Tensor]:
    return [
        g.double() for g in torch.autograd.grad(value, list(model.parameters()), allow_unused=True) if g is not None
    ]


@pytest.mark.parametrize("count", [2, 4, 8, 50])
def test_micro_batches_have_the_loss_of_the_whole_batch(count: int) -> None:
    """Token sequences with 1 to 7 decisions: a mean of means would be another number."""
    setting = SETTINGS[TOKENS]
    model, batch = setting.model().double().train(), setting.problem.data.batch(setting.problem.train[:8])
    targets = batch.targets.clone()
    for row in range(8):
        targets[row, 1 + (row % 7) :] = -100
    targets[0, 1] = batch.targets[0, 1]
    batch = batch._replace(targets=targets)
    whole = loss(setting.problem.objective.decisions(model, batch))
    with micro_batches(count):
        parts = loss(setting.problem.objective.decisions(model, batch))
    assert float(parts.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    for ours, theirs in zip(gradients(parts, model), gradients(whole, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_micro_batches_keep_activations_of_one_at_a_time() -> None:
    setting, alive = SETTINGS[PLAIN], []
    model, batch = setting.model().train(), setting.problem.data.batch(setting.problem.train)
    most = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor.numel())
        return tensor

    for count in (1, 4):
        alive.clear()
        with micro_batches(count), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss(setting.problem.objective.decisions(model, batch))
        most.append(sum(alive))
    assert most[1] < most[0] / 2


def test_dropout_is_the_same_when_a_micro_batch_is_computed_again() -> None:
    """A step along the gradient lowers the loss of the masks that were drawn as much as the gradient says."""
    setting = SETTINGS[PLAIN]
    model, batch = setting.model().double().train(), setting.problem.data.batch(setting.problem.train)
    model.drop = nn.Dropout(0.5)

    def value() -> Tensor:
        with forked(3), micro_batches(4):
            return loss(setting.problem.objective.decisions(model, batch))

    slopes = torch.autograd.grad(before := value(), list(model.parameters()))
    with torch.no_grad():
        for parameter, slope in zip(model.parameters(), slopes, strict=True):
            parameter.sub_(1e-6 * slope)
    expected = 1e-6 * sum(float(slope.square().sum()) for slope in slopes)
    assert float((before - value()).detach()) == pytest.approx(expected, rel=1e-3)


def test_a_mask_that_holds_in_a_block_holds_in_the_backward_pass() -> None:
    setting = SETTINGS[MEMORY]
    model, batch = setting.model().train(), setting.problem.data.batch(setting.problem.train)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    values = []
    for count in (1, 4):
        with base_only(model), micro_batches(count):
            value = loss(setting.problem.objective.decisions(model, batch))
        values.append(gradients(value, model))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_batch_norm_is_refused() -> None:
    setting = SETTINGS[REGULARISED]
    with pytest.raises(SpecError, match="set accumulate = 1"):
        Training(epochs=1, accumulate=2).fit(setting.model(), setting.problem.data, setting.problem.train, 0)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_training_a_method_and_an_attack_in_micro_batches_end_at_the_same_weights(accumulate: int) -> None:
    setting = SETTINGS[TOKENS]
    problem = setting.problem

    def ends(count: int) -> list[nn.Module]:
        # Plain descent: Adam turns rounding of a gradient that is 0 into a step.
        trained = Training(epochs=2, batch_size=8, optimizer="sgd", learning_rate=0.1, accumulate=count)
        method = NegGradPlus(epochs=1, optimizer="sgd", learning_rate=0.05, accumulate=count)
        attack = Relearn(epochs=1, batch_size=8, optimizer="sgd", learning_rate=0.05, accumulate=count)
        start = trained.fit(setting.model(), problem.data, problem.train, 3)
        made = method(start, problem, None, 4).model
        return [start, made, attack(made, Case(0, problem, start), 5).model]

    for ours, theirs in zip(ends(1), ends(accumulate), strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_recomputed_activations_give_the_same_gradients() -> None:
    setting = SETTINGS[TOKENS]
    model, batch = setting.model().train(), setting.problem.data.batch(setting.problem.train)
    again = checkpointed(copy.deepcopy(model), "blocks.*")
    copied = copy.deepcopy(again)
    for other in (again, copied):
        values = [loss(setting.problem.objective.decisions(m, batch)) for m in (model, other)]
        for ours, theirs in zip(*(gradients(v, m) for v, m in zip(values, (model, other), strict=True)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_glob_that_matches_nothing_and_a_model_without_checkpointing_are_refused() -> None:
    model = SETTINGS[PLAIN].model()
    with pytest.raises(SpecError, match=r"no module matches 'layers\.\*'"):
        checkpointed(model, "layers.*")
    with pytest.raises(SpecError, match="no checkpointing of its own"):
        checkpointed(model, "auto")


def test_a_hugging_face_model_checkpoints_itself() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, name, 0.0)
    setting, model = SETTINGS[TOKENS], transformers.GPT2LMHeadModel(config).train()
    again, batch = checkpointed(copy.deepcopy(model), "auto"), setting.problem.data.batch(setting.problem.train)
    flags = [value for module in again.modules() for name, value in vars(module).items() if "checkpointing" in name]
    assert True in flags
    values = [loss(setting.problem.objective.decisions(m, batch)) for m in (model, again)]
    for ours, theirs in zip(gradients(values[0], model), gradients(values[1], again), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointed_modules_see_the_ids_of_the_batch_again() -> None:
    """Example-tied masks depend on ids, which belong to the forward pass; the backward pass runs it a second time."""
    data = Digits(train=40, test=20)()
    inner = nn.Sequential(nn.Linear(64, 16), nn.ReLU())
    net = nn.Sequential(nn.Flatten(), inner, nn.Linear(16, 10))
    plain = put(net, TiedDropout(fixed=0.5, memory=0.5), "1.1").train()
    again = checkpointed(copy.deepcopy(plain), "1")
    batch = data.batch(torch.tensor([7, 3, 11]))
    for model in (plain, again):
        data.objective.loss(model, batch).backward()
    pairs = list(zip(plain.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
    assert any(float(a.grad.abs().sum()) > 0 for a, _ in pairs if a.grad is not None)
