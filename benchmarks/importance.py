"""Importances of weights, as SSD and its relatives need them: what an example at a time costs, and what batches change.

First the ways to square every example's gradient: one pass over 32 examples where every layer is known (ours, for the
MLP and the CNN), and one by one or by `torch.func.vmap`, which must give the same. Then published code's way, which
squares the gradient of each *batch's mean* loss: quicker, but what comes out depends on the batch size, and with it
which weights SSD selects. All on 500 images of the demo's data, of which 60 with wrong labels are to be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.core.case import Meter, train_model
from expunge.core.contracts import Architecture
from expunge.core.job import Job
from expunge.core.problem import Problem
from expunge.data.fashion_mnist import FashionMNIST
from expunge.methods._dampening import importances
from expunge.methods._gradients import mean_squared_gradient
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.tasks.label_swap import LabelSwap
from expunge.train.loop import in_order
from expunge.train.training import TrainedRecipe, Training

EXAMPLES, FORGET, CHUNK = 500, 60, 32
BATCH_SIZES = (1, 8, 32, 128)
ALPHA = 3.0


def main(repeats: int = 5, epochs: int = 10) -> None:
    torch.set_num_threads(1)
    problem = LabelSwap(count=FORGET)(FashionMNIST(train=EXAMPLES)(), 0, {})
    for name, architecture in (("CNN", CNN()), ("MLP", MLP())):
        model = trained(architecture, problem, epochs)
        ways(name, model, problem, repeats)
        batches(name, model, problem, repeats)


def trained(architecture: Architecture, problem: Problem, epochs: int) -> nn.Module:
    recipe = TrainedRecipe(architecture, Training(epochs=epochs), problem.data)
    return train_model(recipe, problem.data, problem.train, 0)


def ways(name: str, model: nn.Module, problem: Problem, repeats: int) -> None:
    """Three ways to the same numbers."""
    ours = _measured(model, problem)
    exact = ours()
    for label, other in (("one by one", one_by_one), (f"vmap over {CHUNK}", vmapped)):
        ratio = compare(ours, lambda other=other: other(model, problem, problem.train), repeats)
        gap = float((_flat(other(model, problem, problem.train)) - exact).abs().max() / exact.max())
        print(f"{name}: ours over {label} {ratio}; largest difference {gap:.0e} of the largest importance")


def batches(name: str, model: nn.Module, problem: Problem, repeats: int) -> None:
    """The published way, at several batch sizes."""
    found = importances(model, Job(problem, None, 0, Meter(), torch.device("cpu"), model), mean_squared_gradient)
    assert found is not None
    forget, whole = _flat(found.forget), _flat(found.whole)
    chosen = forget > ALPHA * whole
    print(f"{name}, each example by itself: SSD with alpha {ALPHA} selects {_percent(chosen)} of the weights")
    for size in BATCH_SIZES:
        ratio = compare(
            _measured(model, problem), lambda size=size: per_batch(model, problem, problem.train, size), repeats
        )
        rough = _flat(per_batch(model, problem, problem.train, size))
        selected = _flat(per_batch(model, problem, problem.forget, size)) > ALPHA * rough
        both = int((chosen & selected).sum()) / max(int((chosen | selected).sum()), 1)
        print(
            f"{name}, batches of {size}: ours over theirs {ratio}; their importance "
            f"{float(rough.sum() / whole.sum()):.3f} of ours, selects {_percent(selected)}; of what either selects, "
            f"{both:.0%} is selected by both"
        )


def one_by_one(model: nn.Module, problem: Problem, ids: Tensor) -> list[Tensor]:
    """Mean of squares: a pass for every example."""
    return per_batch(model, problem, ids, 1)


def per_batch(model: nn.Module, problem: Problem, ids: Tensor, batch_size: int) -> list[Tensor]:
    """Mean over batches of the squared gradient of the batch's mean cross-entropy."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    count = 0
    for batch in in_order(problem.data, ids, batch_size):
        value = F.cross_entropy(model(batch.inputs), batch.targets)
        for entry, gradient in zip(total, torch.autograd.grad(value, parameters), strict=True):
            entry.addcmul_(gradient, gradient)
        count += 1
    return [entry / count for entry in total]


def vmapped(model: nn.Module, problem: Problem, ids: Tensor) -> list[Tensor]:
    """Mean of squares: gradients of single examples side by side."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    each = vmap(grad(one), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in in_order(problem.data, ids, CHUNK):
        for name, gradient in each(weights, batch.inputs, batch.targets).items():
            total[name] += gradient.square().sum(0)
    return [entry / len(ids) for entry in total.values()]


def _measured(model: nn.Module, problem: Problem) -> Callable[[], Tensor]:
    def ours() -> Tensor:
        found = mean_squared_gradient(model, problem, problem.train, Meter())
        assert found is not None
        return _flat(found)

    return ours


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _percent(mask: Tensor) -> str:
    return f"{float(mask.double().mean()):.2%}"


if __name__ == "__main__":
    main()
