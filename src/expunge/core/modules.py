"""Inspect and copy modules: trainable parameters, modes, shared storage, digests and teachers."""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from expunge.base.errors import SpecError, unknown
from expunge.numerics.real import as_real, is_continuous

Chosen = TypeVar("Chosen", bound=nn.Module)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen; a tied parameter occurs once."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def first_parameter(module: nn.Module) -> Tensor:
    """The first real or complex parameter, as real numbers: it shows the module's device and its real dtype.

    An empty tensor without any.
    """
    return next((as_real(p) for p in module.parameters() if is_continuous(p)), torch.empty(0))


def half_precision(module: nn.Module) -> str:
    """The first parameter or buffer in less than single precision, with its type; empty if there is none."""
    narrow = ((n, t) for n, t in tensors(module).items() if t.is_floating_point() and t.itemsize < 4)
    return next((f"{name} is {tensor.dtype}" for name, tensor in narrow), "")


def widened(module: nn.Module) -> nn.Module:
    """The module with its tensors in half precision, or less, in single precision; in place, others stay as they are.

    Half the distance between neighbouring numbers of bfloat16 is up to 0.4 % of a weight. An optimiser's steps are
    smaller, so rounding undoes them. In single precision they count.
    """

    def wide(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor

    return module._apply(wide) if half_precision(module) else module


def require_single_precision(module: nn.Module) -> None:
    """Refuse to train weights in half precision, which steps of the usual size do not change.

    Raises:
        SpecError: A parameter or buffer is in less than single precision.
    """
    narrow = half_precision(module)
    if narrow:
        raise SpecError(
            f"{narrow}, in which the steps of training round away",
            where=f"model ({type(module).__name__})",
            allowed="weights in float32 or float64",
            remedy='make them float32: model.float(); in a spec, precision = "bf16" computes fast on such weights',
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each submodule has its earlier mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class SharedParameter(nn.Parameter):
    """Frozen weights that all copies of their model share, because nothing changes them: those under an adapter."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedParameter:
        return self


def sharing(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters are the model's own memory. Copies of the copy share them, too."""
    shared: dict[int, Any] = {id(p): SharedParameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def owning(model: nn.Module) -> nn.Module:
    """Give the model memory of its own where it shares it, in place; tied weights stay tied."""
    own: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, shared in module._parameters.items():
            if isinstance(shared, SharedParameter):
                if id(shared) not in own:
                    own[id(shared)] = nn.Parameter(shared.detach().clone(), shared.requires_grad)
                module._parameters[name] = own[id(shared)]
    return model


def saved_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers that can change, for `restore_state`."""
    named = module.named_parameters(remove_duplicate=False)
    shared = {name for name, parameter in named if isinstance(parameter, SharedParameter)}
    return copy.deepcopy({name: value for name, value in module.state_dict().items() if name not in shared})


def restore_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a saved state back, in place."""
    module.load_state_dict({**module.state_dict(), **state})


def frozen_copy(module: nn.Module) -> nn.Module:
    """A teacher: an independent copy in evaluation mode, whose parameters are all frozen."""
    teacher = copy.deepcopy(module).eval()
    return teacher.requires_grad_(False)


def shared_storage(a: nn.Module, b: nn.Module) -> list[str]:
    """Names of `a`'s parameters and buffers that share memory with `b`.

    A shallow copy of a module shares all of them. A "teacher" made that way *is* the student: every divergence between
    the two is zero, and unlearning with it does nothing.
    """
    taken = {address for t in tensors(b).values() if (address := _address(t))}
    return [name for name, t in tensors(a).items() if _address(t) in taken and not isinstance(t, SharedParameter)]


def _address(tensor: Tensor) -> int:
    """Address of a tensor's memory; 0 if it has none, as on the device `meta` or before the first forward pass."""
    return 0 if is_lazy(tensor) or not tensor.numel() else tensor.untyped_storage().data_ptr()


def counterparts(original: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """The original's tensors that correspond to what can move in a module: see `movable`.

    Args:
        original: A model of the same architecture.
        module: Gives the names; the flags `requires_grad` are its own.

    Raises:
        SpecError: The original has another architecture; the message names the first difference.
    """
    theirs, ours = tensors(original), movable(module)
    other = [name for name, tensor in ours.items() if name not in theirs or theirs[name].shape != tensor.shape]
    if other:
        raise SpecError(
            f"{other[0]!r} does not have the same shape in the original model",
            where=f"model ({type(module).__name__})",
            allowed="a model of the original's architecture",
            remedy="let the method start from the original",
        )
    return {name: theirs[name].detach() for name in ours}


def movable(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, and real and complex buffers; a tied tensor has its first name."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return parameters | {name: b for name, b in module.named_buffers() if is_continuous(b)}


def require_distinct(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that shares storage with its student.

    Args:
        teacher: The model that must not change.
        student: The model that is trained.

    Raises:
        SpecError: They share at least one tensor.
    """
    names = shared_storage(teacher, student)
    if names:
        raise SpecError(
            f"the teacher shares storage with its student ({names[0]} and {len(names) - 1} more)",
            where=f"teacher ({type(teacher).__name__})",
            remedy="make it with copy.deepcopy or expunge.core.modules.frozen_copy",
        )


def state_digest(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every parameter and buffer, and over modes and frozen flags."""
    sha = hashlib.sha256()
    for name, tensor in tensors(module).items():
        sha.update(f"{name}{tensor.requires_grad}".encode())
        _add(sha, tensor)
    sha.update("".join(str(int(m.training)) for m in module.modules()).encode())
    return sha.hexdigest()


def parameters_digest(module: nn.Module) -> str:
    """SHA-256 over dtypes, shapes and bytes of the parameters; of the buffers if there are no parameters."""
    sha = hashlib.sha256()
    weights: list[Tensor] = [*module.parameters()] or [*module.buffers()]
    for tensor in weights:
        if not is_lazy(tensor):
            _add(sha, tensor)
    return sha.hexdigest()


def _add(sha: Any, tensor: Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    sha.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
    sha.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())


def weights_differ(a: nn.Module, b: nn.Module) -> bool:
    """Whether a parameter or a floating-point buffer differs between two modules; counters are not compared."""
    ours, theirs = (
        {name: t for name, t in tensors(m).items() if t.is_floating_point() or t.is_complex()} for m in (a, b)
    )
    # Compared by bits, so that a NaN equals itself.
    return ours.keys() != theirs.keys() or any(_bits(t) != _bits(theirs[name]) for name, t in ours.items())


def kept_below(original: nn.Module, edited: nn.Module) -> str:
    """The last layer before the first change, if at least half of all layers are the original's up to there.

    Layers are modules with weights or floating-point buffers of their own, in the order in which they are registered.
    They are compared by bits.

    Returns:
        The layer's path; empty if less was kept, if nothing was changed, or if the layers of the two differ.
    """
    ours, theirs = (_layers(module) for module in (original, edited))
    if [*ours] != [*theirs]:
        return ""
    kept = list(itertools.takewhile(lambda path: ours[path] == theirs[path], ours))
    if not len(ours) / 2 <= len(kept) < len(ours):
        return ""
    changed = [*ours][len(kept)]
    # The output of a module that holds the changed one is changed with it, for example by a block behind a layer.
    return next((path for path in reversed(kept) if not f"{changed}.".startswith(f"{path}." if path else "")), "")


def _layers(module: nn.Module) -> dict[str, list[bytes]]:
    """Path of each layer -> digests of what it holds itself."""
    own = {
        path: [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for path, part in module.named_modules()
    }
    digests = {path: [_bits(t) for _, t in held if is_continuous(t)] for path, held in own.items()}
    return {path: held for path, held in digests.items() if held}


def _bits(tensor: Tensor) -> bytes:
    sha = hashlib.sha256()
    _add(sha, tensor)
    return sha.digest()


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer is a Hugging Face `Conv1D`: a linear layer whose weight is `[inputs, outputs]`."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers.")


def chosen_layer(what: str, layers: Mapping[str, Chosen], path: str) -> tuple[str, Chosen]:
    """The layer at a path, and the path; the last of the layers if the path is empty.

    Raises:
        SpecError: There is no such layer; `what` says of which kind.
    """
    if path and path not in layers:
        raise unknown(what, path, layers, where="layer")
    path = path or list(layers)[-1]
    return path, layers[path]


def embedding_layer(model: nn.Module, side: Literal["input", "output"]) -> nn.Module | None:
    """The layer of a model from transformers that reads tokens, or that makes logits; `None` if there is none."""
    method = getattr(model, f"get_{side}_embeddings", None)
    try:
        layer = method() if callable(method) else None
    except (NotImplementedError, AttributeError):  # what transformers raises for a model without such a layer
        return None
    return layer if isinstance(layer, nn.Module) else None


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied one occurs once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def path_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression for paths: `*` and `?` match within a step, `**` matches any number of steps, also none."""
    text = re.escape(pattern).replace(r"\*\*\.", "(?:.*\\.)?").replace(r"\.\*\*", "(?:\\..*)?").replace(r"\*\*", ".*")
    return re.compile(text.replace(r"\*", "[^.]*").replace(r"\?", "[^.]"))
