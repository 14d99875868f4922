"""Whether gradients by a short cut are those of autograd, and whether autograd's own are right for one example.

Kernels for a batch of one example differ from those for several, and some were wrong (`norms`). The gradient for two
copies of an example must be twice that for the example alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.base.errors import RunError
from expunge.numerics._capture import watched
from expunge.numerics.precision import wide

Numbers = Callable[[int], Tensor]
"""Maps a number of copies of one example to the numbers, of any shape, whose sum is differentiated."""

_COMPARING: ContextVar[bool] = ContextVar("comparing", default=False)


@contextmanager
def comparing() -> Iterator[None]:
    """Inside, gradients are taken only for a comparison, so they are not part of a method's cost."""
    before = _COMPARING.set(True)
    try:
        yield
    finally:
        _COMPARING.reset(before)


def is_comparing() -> bool:
    """Whether gradients are taken only for a comparison."""
    return _COMPARING.get()


def gradients(parameters: Mapping[str, nn.Parameter], numbers: Tensor) -> dict[str, Tensor]:
    """The gradient of a sum of numbers by each parameter, by name; zero for one that the numbers do not depend on."""
    slopes = torch.autograd.grad(numbers.sum(), list(parameters.values()), allow_unused=True, materialize_grads=True)
    dense = [slope.to_dense() if slope.is_sparse else slope for slope in slopes]
    return dict(zip(parameters, dense, strict=True))


def deviations(ours: Mapping[str, Tensor], truth: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, float]:
    """The gradients that differ from the truth by more than rounding.

    Args:
        ours: By the parameter's name.
        truth: By the parameter's name, at least for these parameters, with as many entries.
        dtype: The type of the computation, which says how large rounding errors are.

    Returns:
        By the parameter's name, the norm of the difference relative to that of the true gradient.
    """
    share = torch.finfo(dtype).eps ** 0.4
    # A gradient that is zero in theory, such as that of a bias before a norm, consists of rounding errors.
    noise = min(100 * torch.finfo(dtype).eps, share) * sum(float(_squared(g)) for g in truth.values()) ** 0.5
    relative = {}
    for name, gradient in ours.items():
        size = _squared(truth[name]).sqrt()
        gap = _squared(gradient.reshape(-1) - truth[name].reshape(-1)).sqrt()
        if not gap <= share * size + noise:
            relative[name] = float(gap / size)
    return relative


def require_sound(model: nn.Module, numbers: Numbers, dtype: torch.dtype) -> None:
    """Refuse a model whose gradients for one example alone are wrong.

    It compares the gradients at the outputs of all modules, because those of parameters may rightly depend on the
    number of copies (an embedding scaled by frequency, a hook that clips). Nothing is compared if two copies give other
    numbers than one, as with a module that mixes the examples of a batch. Cost: the gradient of three examples.

    Args:
        model: The module, in evaluation mode.
        numbers: Runs the model.
        dtype: The type of the computation.

    Raises:
        RunError: The gradients differ; names the module behind which they do.
    """
    try:
        alone, pair = _run(model, numbers, 1), _run(model, numbers, 2)
    except (RuntimeError, TypeError, ValueError):  # a model for batches of one example, or for no hooks
        return
    gap = abs(pair.total - 2 * alone.total)
    if gap > torch.finfo(dtype).eps ** 0.4 * alone.size or pair.paths != alone.paths:
        return
    wrong = _differing(alone.gradients, pair.gradients, dtype)
    if wrong:
        last = max(wrong, key=int)
        raise RunError(
            f"PyTorch's gradient of one example differs by {wrong[last]:.0%} from that of two copies of it",
            where=f"behind {alone.paths[int(last)]}",
            remedy="make tensors contiguous between this module and the next; call norms by torch.nn.functional",
        )


class _Run(NamedTuple):
    paths: list[str]
    """Each call of a module, in the order of their ends."""
    gradients: dict[str, Tensor]
    """Those at the outputs, by the number of the call."""
    total: float
    size: float
    """The sum of the numbers, and of their absolute values."""


def _run(model: nn.Module, numbers: Numbers, copies: int) -> _Run:
    with watched(dict(model.named_modules())) as calls:
        values = numbers(copies)
    paths = [f"{call.path or 'model'} ({type(call.layer).__name__})" for call in calls]
    slopes = torch.autograd.grad(values.sum(), [call.output for call in calls], allow_unused=True) if calls else ()
    gradients = {str(number): slope for number, slope in enumerate(slopes) if slope is not None}
    return _Run(paths, gradients, float(values.detach().sum()), float(values.detach().abs().sum()))


def _differing(alone: Mapping[str, Tensor], pair: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, float]:
    """Deviations of the gradients for one example from those for one of two copies."""
    ours, truth = {}, {}
    for number, gradient in alone.items():
        both = pair.get(number)
        if both is None or both.ndim != gradient.ndim:
            continue
        doubled = [d for d, (one, two) in enumerate(zip(gradient.shape, both.shape, strict=True)) if one != two]
        if not doubled:  # the same for all examples, as positions are
            ours[number], truth[number] = gradient, both / 2
        elif gradient.shape[doubled[0]] == 1 and both.numel() == 2 * gradient.numel():
            ours[number], truth[number] = gradient, both.narrow(doubled[0], 0, 1)
        elif both.numel() == 2 * gradient.numel():
            # Examples and positions in one dimension, in an order that only the model knows.
            ours[number], truth[number] = _sorted(gradient), _sorted(both)[::2]
    return deviations(ours, truth, dtype)


def _sorted(tensor: Tensor) -> Tensor:
    return tensor.abs().flatten().sort().values


def _squared(tensor: Tensor) -> Tensor:
    return wide(tensor.abs()).square().sum()
