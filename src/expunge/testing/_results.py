"""The contract of a method's result: a model that can replace the input and be stored, and shares no memory with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from expunge.base.errors import SpecError
from expunge.core import checkpoint
from expunge.core.modules import first_parameter, shared_storage
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.numerics.real import is_continuous, real_type
from expunge.testing._error import Fail
from expunge.testing._settings import Setting
from expunge.testing._state import named, ties
from expunge.train.evaluation import outputs


def check_result(result: nn.Module, given: nn.Module, setting: Setting, fail: Fail) -> None:
    """Check the result of a method against the contract."""
    _check_usable(result, fail)
    shared = shared_storage(result, given)
    if shared:
        raise fail("a model of its own", f"{shared[0]!r} is the input's memory", "work on copy.deepcopy(model)")
    _check_kind_kept(result, given, fail)
    if not any(shared_storage(result, built) for built in setting.built):
        _check_frozen(result, given, fail)
    if ties(result) != ties(given):
        raise fail(
            "ties are kept",
            f"tied parameters were {ties(given) or 'none'}, are {ties(result) or 'none'}",
            "change parameters in place; assigning a new nn.Parameter cuts the tie",
        )
    _check_stored(result, setting, fail)


def _check_usable(result: nn.Module, fail: Fail) -> None:
    for name, tensor in named(result).items():
        if not torch.isfinite(tensor).all():
            raise fail(
                "finite", f"{name!r} has a value that is not finite", "stop at the first loss that is not finite"
            )
    training = [name or "the model itself" for name, module in result.named_modules() if module.training]
    if training:
        raise fail("evaluation mode", f"{training[0]} is in training mode", "return model.eval()")


def _check_kind_kept(result: nn.Module, given: nn.Module, fail: Fail) -> None:
    wanted = first_parameter(given)
    for name, parameter in result.named_parameters():
        kind = (real_type(parameter.dtype), parameter.device)
        if is_continuous(parameter) and kind != (wanted.dtype, wanted.device):
            became = f"{parameter.dtype} on {parameter.device}"
            raise fail(
                "device and dtype are kept",
                f"{name!r} became {became}, the input is {wanted.dtype} on {wanted.device}",
                "make tensors with .to(parameter), not .float()",
            )


def _check_frozen(result: nn.Module, given: nn.Module, fail: Fail) -> None:
    remedy = "train expunge.core.modules.trainable(student) only, and leave requires_grad as it is"
    parameters = dict(result.named_parameters())
    for name, parameter in given.named_parameters():
        if name not in parameters:
            raise fail("the same parameters", f"{name!r} is missing", "return a model of the input's architecture")
        if parameters[name].requires_grad != parameter.requires_grad:
            became = "trainable" if parameters[name].requires_grad else "frozen"
            raise fail("frozen stays frozen", f"{name!r} became {became}", remedy)
        if not parameter.requires_grad and not torch.equal(parameters[name], parameter):
            raise fail("frozen stays frozen", f"the frozen {name!r} changed", remedy)


def _check_stored(result: nn.Module, setting: Setting, fail: Fail) -> None:
    """A run stores the weights of each result and loads them into a model that the recipe built."""
    with forked():
        fresh = setting.make()
    try:
        stored = checkpoint.restore(fresh, checkpoint.dump(result), "result").eval()
    except (SpecError, RuntimeError) as error:
        raise fail("can be stored", str(error), "return a model whose state fits the recipe's architecture") from error
    if not np.array_equal(_outputs(stored, setting.problem), _outputs(result, setting.problem), equal_nan=True):
        raise fail(
            "can be stored",
            "after storing and loading, its outputs differ",
            "keep all state of the model in parameters and buffers",
        )


def _outputs(model: nn.Module, problem: Problem) -> np.ndarray:
    return outputs(model, problem, problem.test)
