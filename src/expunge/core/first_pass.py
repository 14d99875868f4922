"""The first use of the user's model: what wraps it is taken off, and a copy and one forward pass are tried."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from expunge.base.errors import ExpungeError, SpecError
from expunge.core.data import Batch
from expunge.core.modules import evaluating, tensors
from expunge.core.objective import CLASSES, DECISIONS, TOKENS, Objective
from expunge.reporting.progress import Progress

EXAMPLES = 8
"""Examples of the first forward pass."""
FEWEST_OUTPUTS = 32
"""Fewest outputs that show a sigmoid if all lie between 0 and 1."""
LONGEST = 200
"""Letters of another library's error that are repeated."""
COPYABLE = "a module that copy.deepcopy copies"
KEEP_NONE = (
    "delete an activation that is kept as an attribute, or keep it detached; for weight norm and spectral norm use "
    "torch.nn.utils.parametrizations"
)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside a parallel, averaged or compiled one, whose weights have their own names."""
    inner = model
    while isinstance(inner, _WRAPPERS) or hasattr(inner, "_orig_mod"):
        inner = inner.module if isinstance(inner, _WRAPPERS) else inner._orig_mod  # type: ignore[assignment]
    if inner is not model:
        Progress().say(f"model: a {type(model).__name__} is used as the {type(inner).__name__} inside it")
    return inner


def copied(model: nn.Module) -> nn.Module:
    """An independent copy in evaluation mode.

    Raises:
        SpecError: The model cannot be copied, or elements of a tensor share memory; the message names the attribute.
    """
    require_loadable(model)
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        _refuse_uncopyable(model)
        raise SpecError(
            f"it cannot be copied ({first_line(error)})", where=f"model ({type(model).__name__})", allowed=COPYABLE
        ) from error


def _refuse_uncopyable(model: nn.Module) -> None:
    """Refuse a model with an attribute that cannot be copied; the message names it."""
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            # Submodules have their own turn, and parameters can be copied.
            if name in ("_modules", "_buffers", "_parameters"):
                continue
            try:
                copy.deepcopy(value)
            except Exception as error:
                computed = isinstance(value, Tensor)
                what = "a tensor that is the result of a computation" if computed else f"a {type(value).__name__}"
                raise SpecError(
                    f"it cannot be copied: {f'{path}.{name}'.lstrip('.')} holds {what} ({first_line(error)})",
                    where=f"model ({type(model).__name__})",
                    allowed=COPYABLE,
                    remedy=KEEP_NONE if computed else "make it where it is used, or leave it out with __getstate__",
                ) from error


def require_loadable(model: nn.Module) -> None:
    """Refuse a parameter or buffer that cannot be loaded: its elements share memory, or it has no shape yet.

    Raises:
        SpecError: There is one; the message names it.
    """
    for name, tensor in tensors(model).items():
        if is_lazy(tensor):
            raise SpecError(
                f"{name} has no shape before the first forward pass",
                where=f"model ({type(model).__name__})",
                remedy="run the model once on a batch",
            )
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise SpecError(
                f"elements of {name} share memory, as after expand()",
                where=f"model ({type(model).__name__})",
                allowed="tensors whose elements have memory of their own",
                remedy="register a copy: tensor.expand(...).clone()",
            )


def first_pass(model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Measure a copy of the model on a few examples, as every audit will, and copy it again after that.

    Raises:
        SpecError: The model cannot be copied, cannot be run on such inputs, or returns probabilities.
    """
    trial = copied(model)
    with torch.enable_grad():
        outputs = guarded(trial, batch, lambda: objective.prediction(trial, batch))
    # A model that keeps activations of a pass with gradients can be copied only before that pass.
    _refuse_uncopyable(trial)
    with torch.no_grad():
        guarded(trial, batch, lambda: objective.measure(trial, batch))
    _refuse_probabilities(outputs.detach(), model, objective)


def guarded(model: nn.Module, batch: Batch, run: Callable[[], Any]) -> Any:
    """What `run` returns in evaluation mode; an error of the model becomes a refusal that names its inputs.

    Raises:
        SpecError: The forward pass failed.
    """
    try:
        with evaluating(model):
            return run()
    except ExpungeError:
        raise
    except Exception as error:
        raise SpecError(
            f"a forward pass on inputs {described(batch.inputs)} failed ({type(error).__name__}: {first_line(error)})",
            where=f"model ({type(model).__name__})",
            allowed="inputs as the model's forward takes them, all examples in one batch",
            remedy="images are usually floating-point [n, channels, height, width], tokens int64 [n, t]; a model "
            "with further arguments needs a wrapper that takes the inputs only",
        ) from error


def described(inputs: Any) -> str:
    """Shape and type of inputs, for messages."""
    return f"{list(inputs.shape)} {inputs.dtype}" if isinstance(inputs, Tensor) else f"({type(inputs).__name__})"


def first_line(error: Exception) -> str:
    """The first line of an error's message, not longer than `LONGEST` letters."""
    text = str(error).strip().partition("\n")[0]
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _refuse_probabilities(outputs: Tensor, model: nn.Module, objective: Objective) -> None:
    """Refuse outputs of a softmax or sigmoid: taken as logits, they would give wrong losses and gradients."""
    if DECISIONS not in objective.provides or not outputs.is_floating_point() or outputs.ndim < 2:
        return
    varied = bool((outputs != outputs[0]).any())
    if not varied or not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return
    sums = [outputs.sum(dim) for dim in (1, -1) if outputs.shape[dim] > 1]
    softmax = any(torch.allclose(total, torch.ones_like(total), atol=1e-3) for total in sums)
    one_class = bool(objective.provides & {CLASSES, TOKENS})
    if softmax or (not one_class and outputs.numel() >= FEWEST_OUTPUTS):
        facts = "none is negative, and they sum to 1" if softmax else "all lie between 0 and 1"
        last = "softmax out, or return its logarithm (log_softmax)" if softmax else "sigmoid out"
        raise SpecError(
            f"its outputs are probabilities: {facts}",
            where=f"model ({type(model).__name__})",
            allowed="logits",
            remedy=f"leave the last {last}, in the model, in build and in train",
        )
