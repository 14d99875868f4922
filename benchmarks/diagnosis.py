"""What each diagnostic costs on a network of ten million weights, beside one epoch of its training in the same run.

An MLP of 784-2304-2304-1280-10 on 5,000 images of Fashion-MNIST, one thread. Diagnostics promise at most two epochs'
gradients by default; seconds are what is shown here, linear algebra included. A call of autograd counts one gradient
per example, so that a Hessian-vector product counts two.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks._ratio import compare
from expunge.base import registry
from expunge.core.case import Case, train_model
from expunge.core.contracts import Diagnostic
from expunge.data.fashion_mnist import FashionMNIST
from expunge.models.mlp import MLP
from expunge.tasks.hard_examples import HardExamples
from expunge.train.training import TrainedRecipe, Training

WIDTHS = [2304, 2304, 1280]
TRAIN, FORGET = 5000, 200


def counted(model: nn.Module, diagnostic: Diagnostic, case: Case) -> int:
    """Gradients: examples of the last forward pass, for every call of autograd while the diagnostic runs."""
    sizes, seen, grad = [0], list[int](), torch.autograd.grad

    def counting(*arguments: Any, **named: Any) -> Any:
        seen.append(sizes[-1])
        return grad(*arguments, **named)

    hook = model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    with patch("torch.autograd.grad", counting):
        diagnostic(case, 0)
    hook.remove()
    return sum(seen)


def main(repeats: int = 1, epochs: int = 3) -> None:
    torch.set_num_threads(1)
    data = FashionMNIST(train=TRAIN)()
    recipe, task = TrainedRecipe(MLP(widths=WIDTHS), Training(epochs=epochs), data), HardExamples(count=FORGET)
    problem = task(data, 0, task.measure(data, recipe, 0))
    original = train_model(recipe, data, problem.train, 0)
    case = Case(0, problem, original, recipe)
    once = TrainedRecipe(MLP(widths=WIDTHS), Training(epochs=1), data)
    print(
        f"{sum(p.numel() for p in original.parameters()) / 1e6:.1f} M weights, {len(problem.train)} examples an epoch"
    )
    for name in registry.names("diagnostic"):
        diagnostic = registry.load("diagnostic", name)()
        if not diagnostic.by_default:
            continue
        gradients = counted(original, diagnostic, case) / len(problem.train)
        ratio = compare(
            lambda diagnostic=diagnostic: diagnostic(case, 0),
            lambda: train_model(once, data, problem.train, 0),
            repeats,
        )
        print(f"{name:18} {gradients:.2f} epochs' gradients, {ratio.best:.2f} of an epoch's {ratio.theirs:.1f} s")


if __name__ == "__main__":
    main()
