"""The contract of a model family: the seed decides the weights, all are used and stored, and tokens are causal."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core import checkpoint
from expunge.core.contracts import Architecture
from expunge.core.data import IGNORE, Batch, Data
from expunge.core.objective import DECISIONS, Objective
from expunge.testing._candidates import candidates, images
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._rules import check_settings, randomness, reasons
from expunge.testing._state import difference, ties


def check_model(architecture: Architecture, data: Data | None = None) -> None:
    """Check a model family against its contract, on each kind of data that it does not refuse.

    The model has one output per label. The same seed gives the same weights, and another seed gives others; they are
    drawn from torch's global generator only. Each parameter gets a gradient. All weights and ties are the same, bit by
    bit, after storing and restoring. The model also runs in double precision. A language model sees no later token.

    Args:
        architecture: The model family.
        data: Data for the model; by default small images of digits and Python's reference texts, and, if it refuses
            both, small scenes that it shall reconstruct.

    Raises:
        ContractError: The first broken contract.
    """
    check_settings(architecture)
    refusals = [error for candidate in candidates(data) if (error := _refusal(architecture, candidate))]
    if len(refusals) == len(candidates(data)) and (data is not None or _refusal(architecture, images())):
        raise ContractError(architecture, "some data fit", str(refusals[0]), "pass data= that suit it") from refusals[0]


def _refusal(architecture: Architecture, data: Data) -> SpecError | None:
    try:
        _check_on(architecture, data)
    except SpecError as error:
        return error
    return None


def _check_on(architecture: Architecture, data: Data) -> None:
    fail = failing(architecture, type(data.objective).__name__)

    def build(seed: int) -> nn.Module:
        with randomness(seed, fail, torch_too=False):
            return architecture(data)

    model, batch, objective = build(1), data.batch(data.train[:4]), data.objective
    if difference(model, build(1)) or not difference(model, build(2)):
        raise fail("the seed decides the weights", "it does not", "initialise from torch's global generator")
    _check_gradients(model, batch, objective, fail)
    _check_stored(model, build, fail)
    _check_double(model, batch, objective, data, fail)


def _check_gradients(model: nn.Module, batch: Batch, objective: Objective, fail: Fail) -> None:
    with reasons(fail, f"take inputs of shape {list(batch.inputs.shape[1:])}, or raise a SpecError when built"):
        try:
            output = _output(objective, model, batch)
        except SpecError as error:
            raise fail("one output per label", str(error), "read the number of labels from the data") from error
    torch.autograd.backward(output.sum())
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise fail("every parameter is used", f"{idle[0]!r} gets no gradient", "remove it, or freeze it")


def _check_stored(model: nn.Module, build: Callable[[int], nn.Module], fail: Fail) -> None:
    stored = checkpoint.restore(build(2), checkpoint.dump(model), "model")
    if difference(model, stored) or ties(model) != ties(stored):
        raise fail("weights can be stored", f"{difference(model, stored) or 'ties'} changed", "register every tensor")


def _check_double(model: nn.Module, batch: Batch, objective: Objective, data: Data, fail: Fail) -> None:
    """It runs in double precision and, on tokens, sees no later ones; double precision makes this test exact."""
    double = copy.deepcopy(model).double().eval()
    with torch.no_grad(), reasons(fail, "make no tensor of a fixed dtype in forward"):
        before = _output(objective, double, batch)
        if data.has_tokens:
            later = batch._replace(inputs=batch.inputs.clone())
            later.inputs[:, -1] = (later.inputs[:, -1] + 1) % len(data.labels)
            _check_causal(before, objective.decisions(double, later).logits, batch, fail)


def _output(objective: Objective, model: nn.Module, batch: Batch) -> Tensor:
    """Logits; the losses, if the objective makes no decisions."""
    if DECISIONS in objective.provides:
        return objective.decisions(model, batch).logits
    return objective.losses(model, batch)


def _check_causal(before: Tensor, after: Tensor, batch: Batch, fail: Fail) -> None:
    change = (after - before).abs().amax(1)
    last = (batch.targets != IGNORE).nonzero()[:, 1] == batch.inputs.shape[1] - 1
    # In double precision an unseen token changes logits at most by the rounding of another summation order.
    if (change[~last] > 1e-9).any():
        raise fail("no later token is seen", "changing the last token changes earlier logits", "mask attention")
