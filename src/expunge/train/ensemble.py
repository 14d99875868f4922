"""Train several small nets of one recipe side by side: their layers become batched products under `torch.func.vmap`.

Net `k` of the result is `train_model(recipe, data, ids, seeds[k])` up to rounding: it starts from the weights of its
seed and sees batches in the order of its seed. The optimisers here work weight by weight, so nets do not mix. It is
faster if a step is mostly overhead, as for narrow MLPs and small batches (`benchmarks/shadows.py`), not if it is mostly
arithmetic. Dropout draws different masks than in separate training; nets with batch norm are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from expunge.base.errors import SpecError
from expunge.core.data import Batch, Data
from expunge.core.seeding import forked
from expunge.train.loop import batch_count, chunks, fit
from expunge.train.optim import make_optimizer
from expunge.train.training import TrainedRecipe, Training


class Ensemble(nn.Module):
    """Nets of one architecture as one module: of the rows `[k * b, ...]`, each net in turn gets `b`.

    Args:
        nets: At least one; their weights are copied.

    Raises:
        SpecError: The nets have buffers, which `vmap` cannot update.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        if next(nets[0].buffers(), None) is not None:
            raise SpecError("the nets have buffers", where="ensemble", remedy="train them one by one")
        stacked, _ = stack_module_state(list(nets))
        self.names = list(stacked)
        self.stacked = nn.ParameterList(stacked.values())
        # The list hides the template's weights from `parameters()`.
        self.template = [copy.deepcopy(nets[0]).to("meta")]
        self.count = len(nets)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[k * b, ...]`, each row by its net."""
        self.template[0].train(self.training)

        def run_net(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self.template[0], weights, (rows,))
            return outputs

        weights = dict(zip(self.names, self.stacked, strict=True))
        each: Tensor = torch.func.vmap(run_net, randomness="different")(weights, inputs.unflatten(0, (self.count, -1)))
        return each.flatten(0, 1)

    def unstack(self, nets: Sequence[nn.Module]) -> None:
        """Write each net's weights into the module at the same index."""
        with torch.no_grad():
            for index, net in enumerate(nets):
                for name, weights in zip(self.names, self.stacked, strict=True):
                    net.get_parameter(name).copy_(weights[index])


def train_ensemble(recipe: TrainedRecipe, data: Data, ids: Tensor, seeds: Sequence[int]) -> list[nn.Module]:
    """Train one net per seed; returns them in evaluation mode.

    Args:
        recipe: How each net is built and trained.
        data: The training data.
        ids: Which examples: `[k]` for all nets, or `[nets, k]` for each net its own.
        seeds: One per net; decides its initial weights and its order of examples.

    Raises:
        SpecError: The nets have buffers, the training is a function, or it clips gradients, which needs single nets.
        RunError: The loss of a net is not finite.
    """
    t, objective = recipe.training, data.objective
    if not isinstance(t, Training):
        raise SpecError("the training is a function", where="train.name", remedy="train the nets one by one")
    if t.clip is not None:
        raise SpecError(f"found {t.clip}", where="train.clip", allowed="none for an ensemble")
    with forked(seeds[0]):
        nets = [recipe.build(seed) for seed in seeds]
        together = Ensemble(nets).train()
        parameters = list(together.parameters())
        fit(
            parameters,
            # The loss is a mean over all nets' rows; times the number of nets, each net gets the gradient of its mean.
            lambda batch: len(seeds) * objective.loss(together, batch),
            _side_by_side(data, ids.expand(len(seeds), -1), t.batch_size, t.epochs, seeds),
            make_optimizer(t.optimizer, parameters, t.learning_rate, t.weight_decay),
            schedule=t.schedule(t.epochs * batch_count(ids.shape[-1], t.batch_size)),
        )
    together.unstack(nets)
    return [net.eval() for net in nets]


def _side_by_side(data: Data, ids: Tensor, batch_size: int, epochs: int, seeds: Sequence[int]) -> Iterator[Batch]:
    """At each step the concatenated batches that `batches` gives each seed and its row of ids."""
    generators, count = [torch.Generator().manual_seed(seed) for seed in seeds], ids.shape[1]
    for _ in range(epochs):
        order = torch.stack(
            [own[torch.randperm(count, generator=generator)] for own, generator in zip(ids, generators, strict=True)]
        )
        for chunk in chunks(order, batch_size, dim=1):
            yield data.batch(chunk.flatten())
