"""Your own training function in a spec: `[train] name = "my_training:fit"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.part import Part
from expunge.core.case import Meter
from expunge.core.data import Data, rows_of
from expunge.core.own_training import train_in_place


class Items(Dataset[Any]):
    """A data set's examples as a map-style data set of `(inputs, target)`."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        batch = self.data.batch(torch.tensor([index]), trimmed=False)  # items of one shape
        return rows_of(batch.inputs, torch.tensor(0)), batch.targets[0]


@dataclass(frozen=True)
class FunctionTraining(Part):
    """A function `fit(module, dataset, **settings)` that trains the module in place on a map-style data set."""

    target: str
    """`module:function`, beside the spec file or installed."""
    keywords: dict[str, Any] = field(default_factory=dict)
    """The table's other settings, passed as keyword arguments."""

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str, folder: Path | None = None) -> FunctionTraining:
        """The training that a `[train]` table with a name describes.

        Raises:
            SpecError: The name is no function, or the function has no argument with a setting's name.
        """
        target, keywords = table["name"], {key: value for key, value in table.items() if key != "name"}
        if not isinstance(target, str) or ":" not in target:
            raise SpecError(f"found {target!r}", where=f"{where}.name", allowed="module:function")
        registry.build_function(target, keywords, where=where)
        return cls(target, keywords)

    @property
    def epochs(self) -> float:
        """Passes over the training set, for cost forecasts: the setting `epochs`, or 1."""
        return float(self.keywords.get("epochs", 1))

    @property
    def batch_size(self) -> int:
        """Examples per step, for cost forecasts: the setting `batch_size`, or 128."""
        return int(self.keywords.get("batch_size", 128))

    def settings(self) -> dict[str, Any]:
        """The `[train]` table."""
        return {"name": self.target, **self.keywords}

    def code_files(self) -> list[Path]:
        return registry.build_function(self.target, self.keywords, where="train").code_files()

    def fingerprint(self) -> dict[str, Any]:
        """Its settings and the function's code."""
        return registry.build_function(self.target, self.keywords, where="train").fingerprint()

    def fit(self, module: nn.Module, data: Data, ids: Tensor, seed: int, meter: Meter | None = None) -> nn.Module:
        """Call the function with the module in training mode and the chosen items; its gradients are not counted.

        Args:
            module: Trained in place.
            data: The source of the items.
            ids: Which examples, in increasing order.
            seed: Already set for torch; the function may draw from the global generators.
            meter: Not charged: the cost of a function is unknown.

        Raises:
            SpecError: The function returned another module, or did not read its data set.
        """
        function: Callable[..., object] = registry.build_function(self.target, {}, where="train").function
        train_in_place(function, module.train(), Items(data), ids, f"train ({self.target})", **self.keywords)
        return module
