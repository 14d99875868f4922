"""Why a derivative failed, and in which module.

PyTorch reports an in-place change or a missing formula without the layer. The forward pass is run once more, and before
and after each module, the innermost first, the derivative of what it was given and of what it returned is tried. The
first whose outputs fail where its inputs did not is named: what goes wrong between two layers is their parent's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError

Attempt = Callable[[Tensor], object]


class Cut(RuntimeError):
    """A gradient that can be computed but not differentiated, which autograd would take for a constant."""


def require_uncut(gradients: Iterable[Tensor]) -> None:
    """Refuse gradients of which a part was cut from the graph.

    `once_differentiable` hangs its error on a detached copy, so that autograd never runs into it: the second
    derivative would silently lack that part.

    Raises:
        Cut: The graph holds such a part.
    """
    seen: set[Any] = set()
    todo = [gradient.grad_fn for gradient in gradients]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("autograd::Error") or node.name() == "Error":
            raise Cut("a function is marked as differentiable once (once_differentiable)")
        seen.add(node)
        todo += [following for following, _ in node.next_functions]


def explain(
    error: RuntimeError,
    model: nn.Module,
    rerun: Callable[[], object],
    attempt: Attempt,
    lacking: str = "it has no second derivative",
) -> NoReturn:
    """Raise what a user can act on.

    Args:
        error: What autograd said.
        model: The module whose layer is looked for.
        rerun: The forward pass on the batch that failed.
        attempt: The derivatives of a scalar, raising as those that failed did.
        lacking: What is said where the reason is no other.

    Raises:
        RunError: Always; running out of memory is passed on as it is.
    """
    if "allocate" in str(error):
        raise error
    finding, remedy = _reason(str(error).partition(". Hint")[0], lacking)
    raise RunError(finding, where=_culprit(model, rerun, attempt), remedy=remedy) from error


@contextmanager
def explained(model: nn.Module, rerun: Callable[[], object], wanted: Sequence[Tensor]) -> Iterator[None]:
    """Explain where the gradients that are taken inside fail.

    Args:
        model: The module whose layer is looked for.
        rerun: The forward pass on the batch at hand.
        wanted: What a gradient is taken by when the layer is looked for.

    Raises:
        RunError: Autograd failed; running out of memory is passed on as it is.
    """

    def attempt(value: Tensor) -> object:
        return torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)

    try:
        yield
    except RuntimeError as error:
        explain(error, model, rerun, attempt, "it has no gradient")


def _reason(said: str, lacking: str) -> tuple[str, str]:
    """What is the matter, and what to do about it."""
    if "use_reentrant=True" in said:
        finding = "checkpointing with use_reentrant=True cannot be differentiated in this way"
        return finding, "checkpoint with use_reentrant=False"
    if "modified by an inplace operation" in said:
        finding = f"a tensor that the gradient needs was changed in place: {said}"
        return finding, "use the operation that returns a new tensor"
    return f"{lacking}: {said}", "replace the function by a plain one"


def _culprit(model: nn.Module, rerun: Callable[[], object], attempt: Attempt) -> str:
    found: list[str] = []
    sound: list[bool] = []

    def before(_: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
        sound.append(not found and not _fails([*inputs, *named.values()], attempt))

    def after(path: str) -> Callable[[nn.Module, object, object], None]:
        def tried(module: nn.Module, _: object, output: object) -> None:
            if sound.pop() and not found and _fails(output, attempt):
                found.append(f"{path or 'model'} ({type(module).__name__})")

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
    return found[0] if found else "loss"


def _fails(given: object, attempt: Attempt) -> bool:
    several: Sequence[object] = given if isinstance(given, tuple | list) else [given]
    tensors = [t for t in several if isinstance(t, Tensor) and t.requires_grad]
    try:
        # Checkpointing runs modules without gradients.
        with torch.enable_grad():
            for tensor in tensors:
                attempt(tensor.square().sum())
    except SpecError:  # it depends on no parameter, which is no failure
        return False
    except RuntimeError:
        return True
    return False
