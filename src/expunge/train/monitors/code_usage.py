"""How many codes of each codebook are in use, and how many are dead: small codebooks die silently.

`perplexity` is exp of the entropy of the moving shares of codes: 1 if all inputs get one code, the number of codes if
all are used alike. A code is dead if its share is below a hundredth of the average. Both are means over a layer's
codebooks.

Cost: none; the shares are kept by the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.base.part import Count
from expunge.blocks.codebook import codebook_layers
from expunge.core.contracts import Monitor
from expunge.core.data import Data
from expunge.train.monitors._measure import require_every


@dataclass(frozen=True)
class CodeUsage(Monitor):
    """Perplexity of the codes, and share of dead codes, of every codebook."""

    every: Count = 50
    """Steps between measurements."""

    def __call__(self, data: Data, ids: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> CodeUsageMonitor:
        """The monitor of one training."""
        return CodeUsageMonitor(every=self.every)


class CodeUsageMonitor:
    """Reads the codebooks' moving shares.

    Args:
        every: Steps between measurements; calls at other steps do nothing.

    Raises:
        SpecError: `every` is below 1.
    """

    def __init__(self, every: int = 50) -> None:
        require_every(every)
        self.every = every
        self.values: dict[str, list[float]] = {"step": []}

    @property
    def record(self) -> Mapping[str, Sequence[float]]:
        """`step`, and for each layer's path `perplexity <path>` and `dead <path>`, a share."""
        return self.values

    def __call__(self, step: int, model: nn.Module) -> None:
        """Read the layers after this many steps.

        Raises:
            MissingError: The model has no codebook.
        """
        if step % self.every:
            return
        layers = codebook_layers(model)
        if not layers:
            remedy = 'add a [[model.block]] with name = "codebook", or leave this monitor out'
            raise MissingError("the model has no codebook", where="monitor.code_usage", remedy=remedy)
        self.values["step"].append(step)
        for path, layer in layers.items():
            self.values.setdefault(f"perplexity {path}", []).append(float(np.mean(layer.perplexity())))
            self.values.setdefault(f"dead {path}", []).append(float(layer.dead().float().mean()))
