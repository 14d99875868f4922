r"""Make `tests/fixtures/curvlinops.npz`: Kronecker factors and EK-FAC eigenvalues as curvlinops 3.0.1 computes them.

    pip install --no-deps --target FOLDER curvlinops-for-pytorch==3.0.1 backpack-for-pytorch einconv einops \
        linear_operator
    PYTHONPATH=src:FOLDER python scripts/curvlinops_fixture.py

The package is no dependency, so CI reads its outputs from the file, with the weights and data that gave them. All is in
double precision, with gold labels, and from two batches of unequal size. Conventions of both sides:

- curvlinops with `reduction="sum"`: A is a mean over cases, G and the eigenvalues of EK-FAC are sums over cases or
  examples. `made` divides them by their number, so that the file has means, as ours are.
- `expand`: each position is a case. `reduce`: each example; its input is the mean over positions, its gradient the sum.
- EK-FAC's eigenvalues are those of whole examples, `of="examples"`; the package takes models with one decision an
  example only. Its eigenvectors have ascending eigenvalues; the file has descending order, as ours.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "curvlinops.npz"
SPLIT = 9
"""Examples of the first batch."""


def texts() -> nn.Module:
    """Linear layers on sequences `[b, 3, 5]`, four classes at each position."""
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double().eval()


def images() -> nn.Module:
    """Convolutions on images `[b, 2, 6, 6]`, four classes."""
    layers = [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 4)).double().eval()


NETS = {"texts": (texts, (40, 3, 5), (40, 3)), "images": (images, (40, 2, 6, 6), (40,))}
"""Network, and shapes of inputs and targets."""


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of each example's cross-entropies, `[b]`."""
    logits = model(batch[0])
    if logits.ndim == 2:
        return F.cross_entropy(logits, batch[1], reduction="none")
    return F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none").sum(1)


class ClassesFirst(nn.Module):
    """Logits `[b, classes, t]`, as the package asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.net(inputs)
        return logits if logits.ndim == 2 else logits.transpose(1, 2)


def made(name: str, seed: int) -> dict[str, Tensor]:
    """Weights, data and the package's numbers of one network, by name."""
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    build, shape, targets = NETS[name]
    torch.manual_seed(seed)
    net = build()
    inputs, labels = torch.randn(shape, dtype=torch.float64), torch.randint(0, 4, targets)
    out = {f"weights/{key}": value for key, value in net.state_dict().items()} | {"inputs": inputs, "targets": labels}
    batches = [(inputs[:SPLIT], labels[:SPLIT]), (inputs[SPLIT:], labels[SPLIT:])]
    model, count = ClassesFirst(net), len(inputs)
    weights = [parameter for key, parameter in model.named_parameters() if key.endswith("weight")]
    given: Any = (model, nn.CrossEntropyLoss(reduction="sum"), weights, batches)
    for sharing in ("expand", "reduce"):
        operator = KFACLinearOperator(*given, fisher_type="empirical", kfac_approx=sharing, check_deterministic=False)
        operator.compute_kronecker_factors()
        for path, factor in operator._input_covariances.items():
            # The examples' positions at this layer, which a linear head behind `Flatten` does not have.
            positions = 1 if sharing == "reduce" else _positions(net, path.removeprefix("net."), inputs)
            key = f"{sharing}/{path.removeprefix('net.')}"
            out[f"{key}/inputs"], out[f"{key}/gradients"] = (
                factor,
                operator._gradient_covariances[path] / (count * positions),
            )
    if name == "images":
        operator = EKFACLinearOperator(*given, fisher_type="empirical", check_deterministic=False)
        operator._maybe_compute_ekfac()
        for path, values in operator._corrected_eigenvalues.items():
            table = next(iter(values.values())) if isinstance(values, dict) else values
            out[f"ekfac/{path.removeprefix('net.')}"] = table.flip(0, 1) / count
    return out


def _positions(net: nn.Module, path: str, inputs: Tensor) -> int:
    sizes: list[int] = []
    layer = net.get_submodule(path)
    dims = slice(2, None) if isinstance(layer, nn.Conv2d) else slice(1, -1)
    handle = layer.register_forward_hook(lambda module, given, output: sizes.append(output.shape[dims].numel()))
    net(inputs)
    handle.remove()
    return sizes[0]


def main() -> None:
    """Write the file."""
    warnings.simplefilter("ignore")
    arrays = {f"{name}/{key}": value for number, name in enumerate(NETS) for key, value in made(name, number).items()}
    np.savez_compressed(FIXTURE, **{key: value.detach().numpy() for key, value in arrays.items()})
    print(f"{FIXTURE}: {len(arrays)} arrays, {FIXTURE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    sys.exit(main())
