"""Kronecker factors: collecting them against a plain forward and backward pass, and the edit of one large layer.

The plain pass takes the gradients of all weights on the same tokens (aim: 1.3 times its time). Collecting takes those
at the outputs of the perceptron matrices only, and two products of matrices for each of them. The second part
decomposes both factors of a layer and edits it by the rule `kfac`; it is 2048 x 8192 by default, with random factors.
Its memory is predicted before it is touched, and compared with what the process grows by (Linux only).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.core.data import Data
from expunge.core.size import memory
from expunge.models.gpt import GPT
from expunge.numerics.curvature_mask import components, kept
from expunge.numerics.eigenbasis import eigenbases
from expunge.numerics.kronecker import KroneckerFactors, LayerFactors, collect
from expunge.numerics.matrices import working_bytes
from expunge.train.matrices import matrices

VOCABULARY, SEQUENCES, LENGTH = 256, 64, 64
LAYERS = ["blocks.*.up", "blocks.*.down"]


def main(repeats: int = 5, width: int = 128, d_out: int = 2048, d_in: int = 8192) -> None:
    torch.set_num_threads(1)
    collection(repeats, width)
    edit(d_out, d_in)


def collection(repeats: int, width: int) -> None:
    """All tokens in one batch, labels of the data."""
    torch.manual_seed(0)
    text = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1))
    data = Data(text[:, :-1], text[:, 1:], torch.arange(60), torch.arange(60, 64), tuple(map(str, range(VOCABULARY))))
    model = GPT(width=width)(data).eval()
    layers, parameters = matrices(model, LAYERS), list(model.parameters())
    batch = (data.inputs, data.targets)

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none").sum(1)

    def plain() -> object:
        return torch.autograd.grad(losses(model, batch).sum(), parameters)

    ratio = compare(lambda: collect(model, losses, [batch], layers), plain, repeats)
    print(f"factors of {len(layers)} matrices over forward and backward, width {width} (aim 1.3): {ratio}")


def edit(d_out: int, d_in: int) -> None:
    """Seconds of the decomposition and of the edit."""
    needed, present = working_bytes(d_out, d_in), memory()
    if needed > present:
        print(f"{d_out} x {d_in}: {needed / 2**30:.2f} GiB predicted, {present / 2**30:.1f} GiB here: refused")
        return
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(d_out, d_in, generator=draws)
    factors = KroneckerFactors({"layer": LayerFactors(moment(d_in, draws), moment(d_out, draws), 1)})
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = peak(), time.perf_counter()
    ((_, basis),) = eigenbases(factors)
    decomposed = time.perf_counter()
    part = components("kfac", weight, basis, None, draws)
    part.removed(kept(part.scores, 0.9))
    edited = time.perf_counter()
    print(
        f"{d_out} x {d_in}: decomposition {decomposed - start:.1f} s, edit {edited - decomposed:.1f} s, one thread; "
        f"{needed / 2**30:.2f} GiB predicted, the peak grew by {(peak() - before) / 2**30:.2f} GiB"
    )


def moment(size: int, draws: torch.Generator) -> Tensor:
    """A second moment whose eigenvalues fall."""
    rows = torch.randn(size, size, generator=draws) * torch.linspace(1, 0.01, size)
    return rows.T @ rows / size


def peak() -> int:
    """Bytes of the largest resident set since it was reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
