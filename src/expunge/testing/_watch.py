"""Observe the models that run inside a part: the memory that they share, and the examples that they train on."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.modules import shared_storage
from expunge.numerics.agreement import is_comparing


class Watch:
    """Observes running models: shared memory, the number of gradients at outputs, and the examples of these gradients.

    Args:
        model: The part's input model. Other models are observed if they have the same class and shapes.
        inputs: Examples `[n, ...]` whose use is counted.
    """

    def __init__(self, model: nn.Module, inputs: Tensor | None = None) -> None:
        self._kind, self._inputs = _shape(model), inputs
        self._roots: list[nn.Module] = []
        self._depth = 0
        self.shared: list[str] = []
        self.gradients = self.trained_on_watched = self.watched_in_training = 0

    def __enter__(self) -> Watch:
        module = nn.modules.module
        self._handles = [
            module.register_module_forward_pre_hook(self._before),
            module.register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, _: Any) -> None:
        if self._depth == 0 and _shape(module) == self._kind:
            if all(module is not root for root in self._roots):
                self._roots.append(module)
            # At every run, not only at the first: memory can become shared later.
            for root in self._roots:
                if root is not module and not self.shared:
                    self.shared = shared_storage(root, module)
        self._depth += 1

    def _after(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        self._depth -= 1
        # If the forward pass failed, torch leaves the keywords out.
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        inputs = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if self._depth or inputs is None or output is None or is_comparing():
            return
        watched = self._is_watched(inputs)
        if module.training:
            self.watched_in_training += int(watched.sum())
        logits: Any = getattr(output, "logits", output)
        if isinstance(logits, Tensor) and logits.requires_grad and logits.ndim:
            with contextlib.suppress(RuntimeError):  # inside torch.func, where a tensor takes no hook
                hooked: Any = logits
                hooked.register_hook(lambda g: self._count(g, watched))

    def _is_watched(self, inputs: Tensor) -> Tensor:
        if self._inputs is None or inputs.shape[1:] != self._inputs.shape[1:]:
            return torch.zeros(len(inputs) if inputs.ndim else 1, dtype=torch.bool)
        watched = self._inputs.to(inputs)
        return (inputs.detach()[:, None] == watched[None]).flatten(2).all(2).any(1)

    def _count(self, gradient: Tensor, watched: Tensor) -> None:
        # An example with zero gradient ran, but was not trained on.
        trained = (gradient.detach().flatten(1) != 0).any(1)
        self.gradients += int(trained.sum())
        if len(trained) == len(watched):
            self.trained_on_watched += int((trained & watched).sum())


def _shape(module: nn.Module) -> tuple[object, ...]:
    return type(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
