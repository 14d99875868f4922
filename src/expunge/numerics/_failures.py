"""Why a second derivative failed, and in which module.

PyTorch reports an in-place change or a missing formula without the layer. The forward pass is run once more, and after
each module, the innermost first, a second derivative of what it returned is tried: the first that fails is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

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


def explain(error: RuntimeError, model: nn.Module, rerun: Callable[[], object], attempt: Attempt) -> NoReturn:
    """Raise what a user can act on.

    Args:
        error: What autograd said.
        model: The module whose layer is looked for.
        rerun: The forward pass on the batch that failed.
        attempt: Two derivatives of a scalar, raising as the product did.

    Raises:
        RunError: Always; running out of memory is passed on as it is.
    """
    if "allocate" in str(error):
        raise error
    said = str(error).partition(". Hint")[0]
    changed = "modified by an inplace operation" in said
    finding = "a tensor that the gradient needs was changed in place" if changed else "it has no second derivative"
    remedy = "use the operation that returns a new tensor" if changed else "replace the function by a plain one"
    raise RunError(f"{finding}: {said}", where=_culprit(model, rerun, attempt), remedy=remedy) from error


def _culprit(model: nn.Module, rerun: Callable[[], object], attempt: Attempt) -> str:
    found: list[str] = []

    def hook(path: str) -> Callable[[nn.Module, object, object], None]:
        def tried(module: nn.Module, _: object, output: object) -> None:
            if not found and _fails(output, attempt):
                found.append(f"{path or 'model'} ({type(module).__name__})")

        return tried

    handles = [module.register_forward_hook(hook(path)) for path, module in model.named_modules()]
    try:
        rerun()
    except RuntimeError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "loss"


def _fails(output: object, attempt: Attempt) -> bool:
    outputs: Sequence[object] = output if isinstance(output, tuple | list) else [output]
    tensors = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    try:
        for tensor in tensors:
            attempt(tensor.square().sum())
    except SpecError:  # it depends on no parameter, which is no failure
        return False
    except RuntimeError:
        return True
    return False
