"""Why a derivative failed, and in which module.

PyTorch reports an in-place change or a missing formula without the layer. So the forward pass runs once more, and the
derivatives of each module's inputs and outputs are tried, the innermost module first. The error names the first module
whose outputs fail although its inputs do not; a failure between two layers belongs to their parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError

Attempt = Callable[[Tensor], object]


class Cut(RuntimeError):
    """A gradient that can be computed but not differentiated; autograd would treat it as a constant."""


WEIGHT_NORM = "PyTorch's fused weight_norm has a wrong second derivative"


def require_uncut(gradients: Iterable[Tensor]) -> None:
    """Refuse gradients whose graph is incomplete.

    `once_differentiable` puts its error on a detached copy, so autograd never reaches it, and the second derivative
    would silently lack that part.

    Raises:
        Cut: The graph contains such a function.
    """
    for node in _nodes(gradients):
        if node.name().endswith("autograd::Error") or node.name() == "Error":
            raise Cut("a function is marked as differentiable once (once_differentiable)")


def require_exact(value: Tensor) -> None:
    """Refuse a value that depends on the weights through PyTorch's fused weight norm, if that is wrong in this version.

    Its gradient is right. The derivative of the gradient takes the norm for a constant, so the Hessian is neither right
    nor symmetric.

    Raises:
        Cut: The graph contains it.
    """
    if any("WeightNormInterface" in node.name() for node in _nodes([value])) and weight_norm_is_wrong():
        raise Cut(WEIGHT_NORM)


@cache
def weight_norm_is_wrong() -> bool:
    """Whether this version of PyTorch has an asymmetric Hessian for w = g v / |v| with two entries of v."""
    with torch.enable_grad():
        v = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
        value = torch._weight_norm(v, torch.ones(1, 1, dtype=torch.float64), 0)[0, 0]
        slope = torch.autograd.grad(value, v, create_graph=True)[0][0]
        rows = [torch.autograd.grad(entry, v, retain_graph=True)[0][0] for entry in slope]
    return not torch.allclose(rows[0][1], rows[1][0])


def _nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Each function in the graph of these tensors, once."""
    seen: set[Any] = set()
    todo = [tensor.grad_fn for tensor in tensors]
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        todo += [following for following, _ in node.next_functions]


def explain(
    error: RuntimeError,
    model: nn.Module,
    rerun: Callable[[], object],
    attempt: Attempt,
    lacking: str = "it has no second derivative",
) -> NoReturn:
    """Raise an error that names the layer, the reason and a remedy.

    Args:
        error: The error of autograd.
        model: The module that contains the failing layer.
        rerun: Runs the forward pass on the batch that failed.
        attempt: Takes the derivatives of a scalar; raises like those that failed.
        lacking: The finding if the error has no known reason.

    Raises:
        RunError: Always; an out-of-memory error is raised unchanged.
    """
    if "allocate" in str(error):
        raise error
    finding, remedy = _reason(str(error).partition(". Hint")[0], lacking)
    raise RunError(finding, where=_culprit(model, rerun, attempt), remedy=remedy) from error


@contextmanager
def explained(model: nn.Module, rerun: Callable[[], object], wanted: Sequence[Tensor]) -> Iterator[None]:
    """Explain a failure of the gradients that are taken inside this context.

    Args:
        model: The module that contains the failing layer.
        rerun: Runs the forward pass on the current batch.
        wanted: The tensors to differentiate by in the search for the layer.

    Raises:
        RunError: Autograd failed; an out-of-memory error is raised unchanged.
    """

    def attempt(value: Tensor) -> object:
        return torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)

    try:
        yield
    except RuntimeError as error:
        explain(error, model, rerun, attempt, "it has no gradient")


def _reason(text: str, lacking: str) -> tuple[str, str]:
    """The finding and the remedy for an error text of autograd."""
    if text == WEIGHT_NORM:
        return text, "remove it: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
    if "use_reentrant=True" in text:
        finding = "checkpointing with use_reentrant=True cannot be differentiated in this way"
        return finding, "checkpoint with use_reentrant=False"
    if "modified by an inplace operation" in text:
        finding = f"a tensor that the gradient needs was changed in place: {text}"
        return finding, "use the operation that returns a new tensor"
    return f"{lacking}: {text}", "replace the function by a plain one"


def _culprit(model: nn.Module, rerun: Callable[[], object], attempt: Attempt) -> str:
    failing: list[str] = []
    sound: list[bool] = []

    def before(_: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
        sound.append(not failing and not _fails([*inputs, *named.values()], attempt))

    def after(path: str) -> Callable[[nn.Module, object, object], None]:
        def tried(module: nn.Module, _: object, output: object) -> None:
            if sound.pop() and not failing and _fails(output, attempt):
                failing.append(f"{path or 'model'} ({type(module).__name__})")

        return tried

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in model.modules()]
    handles += [module.register_forward_hook(after(path)) for path, module in model.named_modules()]
    try:
        rerun()
    except RuntimeError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return failing[0] if failing else "loss"


def _fails(given: object, attempt: Attempt) -> bool:
    members: Sequence[object] = given if isinstance(given, tuple | list) else [given]
    tensors = [t for t in members if isinstance(t, Tensor) and t.requires_grad]
    try:
        # Checkpointing runs modules without gradients.
        with torch.enable_grad():
            for tensor in tensors:
                attempt(tensor.square().sum())
    except SpecError:  # the tensor depends on no parameter; that is no failure
        return False
    except RuntimeError:
        return True
    return False
