"""Plain chains of layers: their hidden units, and two changes of weights that leave all outputs the same.

Permutation: the units between two layers with weights can be reordered. Rows of the first layer, entries and running
statistics of the norms between, and columns of the second layer move together; after a flattened feature map, columns
move in blocks. With a group norm, whole groups can change places, and channels can change places within a group.
Rescaling: if everything between the two layers is positively homogeneous, f(a x) = a f(x) for a > 0, the incoming
weights of a unit can be multiplied and its outgoing weights divided by the same positive number. ReLU and pooling are
homogeneous; norms are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError

HOMOGENEOUS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
)
"""Modules that treat every unit alike and are positively homogeneous."""
ELEMENTWISE: tuple[type[nn.Module], ...] = (nn.ELU, nn.GELU, nn.ReLU6, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)
"""Modules that treat every unit alike and are not homogeneous."""
BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d)
_OTHER: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, nn.GroupNorm)
SUPPORTED = "nn.Sequential of Linear, Conv2d, batch or group norm, activations, pooling, Flatten and Dropout"


@dataclass(frozen=True, eq=False)
class Joint:
    """The hidden units between two layers with weights."""

    name: str
    """Path of the layer whose outputs are the units."""
    into: nn.Linear | nn.Conv2d
    """The layer whose rows are the units."""
    norms: tuple[nn.Module, ...]
    """Batch and group norms between the two."""
    out_of: nn.Linear | nn.Conv2d
    """The layer whose columns read the units."""
    groups: int
    """Number of equal, consecutive groups of units that must stay together; 1 if every order is possible."""
    homogeneous: bool
    """Whether a positive factor on a unit passes through to the next layer."""

    @property
    def units(self) -> int:
        """Number of hidden units or channels."""
        return len(self.into.weight)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that hold entries of the units."""
        return [p for p in (*self._rows, self.out_of.weight) if isinstance(p, nn.Parameter)]

    @property
    def incoming(self) -> Tensor:
        """Incoming weights of each unit, `[units, d]`: weights, bias and the norms' parameters."""
        return torch.cat([row.detach().reshape(self.units, -1) for row in self._rows], 1)

    @property
    def outgoing(self) -> Tensor:
        """Outgoing weights of each unit, `[units, d]`."""
        return self.out_of.weight.detach().transpose(0, 1).reshape(self.units, -1)

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Move unit `order[i]` to position `i` in all tensors, in place; `order` is `[units]`."""
        for tensor in (*self._rows, *self._statistics):
            tensor.copy_(tensor[order.to(tensor.device)])
        weight, columns = self.out_of.weight, self._columns(order)
        weight.copy_(weight[:, columns.to(weight.device)])

    @torch.no_grad()
    def rescale(self, factors: Tensor) -> None:
        """Multiply each unit's incoming weights by its positive factor and divide its outgoing weights by it, in place.

        `factors` is `[units]`.
        """
        assert self.homogeneous
        for row in self._rows:
            row.mul_(factors.to(row).reshape(-1, *[1] * (row.ndim - 1)))
        weight = self.out_of.weight
        spread = factors.to(weight)[self._columns(torch.arange(self.units)) // self._block]
        weight.div_(spread.reshape(1, -1, *[1] * (weight.ndim - 2)))

    @property
    def _rows(self) -> list[nn.Parameter]:
        pairs = [(module.weight, module.bias) for module in (self.into, *self.norms)]
        return [p for pair in pairs for p in pair if isinstance(p, nn.Parameter)]

    @property
    def _statistics(self) -> list[Tensor]:
        pairs = [(norm.running_mean, norm.running_var) for norm in self.norms if isinstance(norm, BATCH_NORMS)]
        return [s for pair in pairs for s in pair if isinstance(s, Tensor)]

    @property
    def _block(self) -> int:
        """Number of columns that read one unit: the positions of its flattened feature map."""
        return self.out_of.weight.shape[1] // self.units

    def _columns(self, order: Tensor) -> Tensor:
        return (order.unsqueeze(1) * self._block + torch.arange(self._block)).flatten()


def joints(model: nn.Module) -> list[Joint]:
    """The hidden units of a plain chain, from input to output.

    Args:
        model: Nested `nn.Sequential` of supported layers.

    Returns:
        One joint per pair of consecutive layers with weights. Joints refer to the model's own tensors.

    Raises:
        MissingError: The model is not such a chain, or has no hidden units; the message says where, and what is
            supported.
    """
    chain: list[Joint] = []
    last, between = "", list[nn.Module]()
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in _flattened(model, ""):
        if module._modules and type(module) in (*HOMOGENEOUS, *ELEMENTWISE, *BATCH_NORMS, *_OTHER):
            raise _unsupported(f"a block was put behind {name!r}")
        if type(module) in (nn.Linear, nn.Conv2d):
            assert isinstance(module, nn.Linear | nn.Conv2d)
            if last:
                chain.append(_joint(last, layers[last], between, name, module))
            last, between, layers[name] = name, [], module
        elif type(module) in (*HOMOGENEOUS, *ELEMENTWISE, *BATCH_NORMS, nn.GroupNorm):
            between.append(module)
        else:
            raise _unsupported(f"{name!r} is a {type(module).__name__}" if name else f"it is a {type(model).__name__}")
    _check_untied(model)
    if not chain:
        raise _unsupported("there are no hidden units: it has fewer than two layers with weights")
    return chain


def _flattened(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    # A subclass of nn.Sequential may run its modules in another way.
    if type(module) is not nn.Sequential:
        yield path, module
        return
    # Not `named_children`, which leaves out the repetition of a module.
    for name, child in module._modules.items():
        assert child is not None
        yield from _flattened(child, f"{path}.{name}" if path else name)


def _joint(
    name: str, into: nn.Linear | nn.Conv2d, between: list[nn.Module], next_name: str, out_of: nn.Linear | nn.Conv2d
) -> Joint:
    units = len(into.weight)
    flattens = [m for m in between if isinstance(m, nn.Flatten)]
    if any((m.start_dim, m.end_dim) != (1, -1) for m in flattens):
        raise _unsupported(f"a Flatten before {next_name!r} does not start at dimension 1, or does not end at the last")
    for path, layer in ((name, into), (next_name, out_of)):
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise _unsupported(f"{path!r} is a grouped convolution")
    width, mapped = out_of.weight.shape[1], isinstance(into, nn.Conv2d)
    flat = mapped and isinstance(out_of, nn.Linear)
    if (flat and not flattens) or (width % units if flat else width != units):
        raise _unsupported(f"{next_name!r} does not read the {units} outputs of {name!r} one by one")
    norms = tuple(m for m in between if isinstance(m, (*BATCH_NORMS, nn.GroupNorm)))
    groups = {_groups_of(norm, units, next_name) for norm in norms} - {1}
    if len(groups) > 1:
        raise _unsupported(f"group norms before {next_name!r} have different groups")
    homogeneous = all(type(module) in HOMOGENEOUS for module in between)
    return Joint(name, into, norms, out_of, groups.pop() if groups else 1, homogeneous)


def _groups_of(norm: nn.Module, units: int, next_name: str) -> int:
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    if channels != units:
        raise _unsupported(f"a norm before {next_name!r} has {channels} channels, not the {units} units")
    # One group, or one group per channel, keeps no units together.
    tied = isinstance(norm, nn.GroupNorm) and norm.num_groups not in (1, units)
    return int(norm.num_groups) if tied else 1  # type: ignore[arg-type]


def _check_untied(model: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            raise _unsupported(f"{first!r} and {name!r} are the same tensor")


def _unsupported(finding: str) -> MissingError:
    return MissingError(
        f"the model is not a plain chain of layers: {finding}",
        allowed=SUPPORTED,
        remedy="choose such a model (mlp, cnn), or leave this part out",
    )
