"""Insert a block behind modules of a model: choose the modules by pattern, and rename no weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.modules import path_pattern

NAME = "expunge_block"
"""Name of the child module that holds an inserted block; a second one is `expunge_block_2`."""
_SHOWN = 12


class Inserted(nn.Module):
    """An inserted block: a child of the module that it follows, run on that module's output by a forward hook.

    As a child, it moves, trains and is stored with the model. A container that runs all its children also runs this
    one, without effect: `forward` returns its input.

    Args:
        module: Called with the output; its result replaces the output.
        path: Path of the module that it follows, for messages.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__()
        self.module, self.path = module, path

    def forward(self, inputs: Any) -> Any:
        """Return the input."""
        return inputs

    def after(self, _: nn.Module, __: Any, output: Any) -> Any:
        """The hook: run the block on the output, or on the first element of a tuple.

        Raises:
            SpecError: The module returns something else.
        """
        if isinstance(output, Tensor):
            return self.module(output)
        if type(output) is tuple and output and isinstance(output[0], Tensor):
            return (self.module(output[0]), *output[1:])
        raise SpecError(
            f"{self.path!r} returns {type(output).__name__}",
            where="block",
            allowed="a tensor, or a tuple whose first element is a tensor",
            remedy="put the block behind a module inside it",
        )


def put(
    model: nn.Module,
    block: Callable[[nn.Module, str], nn.Module | None],
    at: str | Sequence[str],
    *,
    where: str = "block",
) -> nn.Module:
    """Insert a block behind modules of a model, in place.

    Args:
        model: Any module.
        block: The block, or a function of the model and a path.
        at: Paths as in `model.named_modules()`, or patterns: `*` matches any characters within one step of a path, `?`
            matches one character, and `**` matches any number of steps.
        where: Place of the block in the spec, for messages.

    Returns:
        The model.

    Raises:
        SpecError: A pattern matches no module, or a module that never runs; the message names the most similar paths.
    """
    for path in matching(model, [at] if isinstance(at, str) else at, where):
        module = block(model, path)
        if module is not None:
            follow(model.get_submodule(path), module, path)
    return model


def follow(behind: nn.Module, module: nn.Module, path: str) -> Inserted:
    """From now on, run `module` on the output of `behind`."""
    name, count = NAME, 1
    while name in behind._modules:
        count += 1
        name = f"{NAME}_{count}"
    inserted = Inserted(module, path).train(behind.training)
    behind.add_module(name, inserted)
    behind.register_forward_hook(inserted.after)
    return inserted


def inserted(model: nn.Module) -> list[Inserted]:
    """All inserted blocks of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Inserted)]


def matching(model: nn.Module, patterns: Sequence[str], where: str) -> list[str]:
    """Paths of the modules that match one of the patterns, in the model's order.

    Raises:
        SpecError: A pattern matches no module, or a container that is never called.
    """
    modules = {path: module for path, module in model.named_modules() if path and NAME not in path}
    chosen = set[str]()
    for pattern in patterns:
        expression = path_pattern(pattern)
        matches = [path for path in modules if expression.fullmatch(path)]
        if not matches:
            raise _nowhere(pattern, list(modules), where)
        chosen.update(matches)
    for path in chosen:
        if isinstance(modules[path], nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict):
            finding = f"{path!r} is a {type(modules[path]).__name__}, which is never called"
            raise SpecError(finding, where=f"{where}.at", remedy=f"name its members: {path}.*")
    return [path for path in modules if path in chosen]


def _nowhere(pattern: str, paths: list[str], where: str) -> SpecError:
    near = difflib.get_close_matches(pattern, paths, n=_SHOWN, cutoff=0.0)
    more = f" and {len(paths) - len(near)} more" if len(paths) > len(near) else ""
    return SpecError(
        f"no module matches {pattern!r}",
        where=f"{where}.at",
        allowed=f"paths of modules, such as {', '.join(near)}{more}" if near else "none: the model has no submodules",
        remedy="print(model) shows all of them",
    )
