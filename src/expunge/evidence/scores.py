"""Scores: the values per example that an audit returns for one model and seed. Every estimate follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safe

from expunge.base.errors import ExpungeError, RunError, SpecError, unknown
from expunge.base.reading import read_inside
from expunge.evidence.estimate import Better, Estimate, over_examples
from expunge.evidence.intervals import Floats, Ints

Role = Literal["knowledge", "utility", "predictor", "description"]
"""Only `knowledge` and `utility` enter verdicts."""
Reduce = Literal["mean", "barrier", "single"]
"""How values become one number."""

FORMAT, READABLE = 2, (1, 2)
_FACTS = ("metric", "split", "role", "unit", "better", "sign", "reduce", "required", "bound")
_REQUIRED_IN_FORMAT_1 = ("accuracy", "recitation")
"""Knowledge metrics that `erased` depends on in format 1, whose scores have no `required`."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The values of one metric on one part of the data. Arrays are copied and read-only.

    Raises:
        SpecError: A field has a value that is not allowed, or ids and values differ in shape.
    """

    metric: str
    split: str
    values: Floats
    """One per example, `[n]`; per grid point for `barrier`; one number for `single`."""
    ids: Ints
    """Example that each value belongs to, `[n]`."""
    role: Role
    unit: str
    better: Better
    group: Ints | None = None
    """Group of each example, `[n]`; copies of one example share a group."""
    sign: int = 1
    """+1 if a higher value means knows more, or is more useful; -1 if it means less, as for a loss."""
    reduce: Reduce = "mean"
    """`barrier` is the largest height of a path above the chord between its ends."""
    required: bool = False
    """Knowledge only: whether `erased` depends on it, whatever the spec says."""
    bound: float = 0.02
    """Utility only: the largest loss that is not damage, in the unit of the values."""

    def __post_init__(self) -> None:
        for name, kind in (("role", Role), ("better", Better), ("reduce", Reduce)):
            if getattr(self, name) not in get_args(kind):
                raise unknown(name, str(getattr(self, name)), get_args(kind), where=f"{self.metric}.{name}")
        if self.sign not in (1, -1):
            raise SpecError(f"found {self.sign!r}", where=f"{self.metric}.sign", allowed="1, -1")
        self._freeze("values", np.float64)
        self._freeze("ids", np.int64)
        if self.group is not None:
            self._freeze("group", np.int64)
        if self.values.size == 0 or (self.reduce == "single" and self.values.size != 1):
            raise SpecError(
                f"found {self.values.size} values",
                where=f"{self.metric}.values",
                allowed="exactly 1" if self.reduce == "single" else "at least 1",
            )

    def _freeze(self, name: str, dtype: type) -> None:
        array: np.ndarray[Any, Any] = np.array(getattr(self, name), dtype=dtype, order="C")
        if array.ndim != 1 or (name != "values" and array.shape != self.values.shape):
            raise SpecError(
                f"found shape {array.shape} beside values of shape {np.shape(self.values)}",
                where=f"{self.metric}.{name}",
                allowed="[n], the same for values, ids and group",
            )
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @property
    def key(self) -> tuple[str, str]:
        """Metric and split, which identify the scores within one model."""
        return self.metric, self.split

    @property
    def draws(self) -> Ints:
        """Id of the independent draw of each value, `[n]`: its group if there are groups, otherwise its example."""
        return self.ids if self.group is None else self.group

    def reduced(self) -> float:
        """The values reduced to one number, in their own orientation."""
        with np.errstate(invalid="ignore"):  # a diverged model may have infinite losses; NaN is then the answer
            if self.reduce == "barrier":
                chord = np.linspace(self.values[0], self.values[-1], self.values.size)
                return float(np.max(self.values - chord))
            return float(np.mean(self.values))

    def estimate(self) -> Estimate:
        """The value for this seed, with the 90 % interval of sampling over examples.

        Returns:
            The estimate; low and high are NaN unless the value is a mean over examples.
        """
        if self.reduce == "mean":
            return over_examples(self.values, self.unit, self.better, self.group)
        return Estimate(self.reduced(), math.nan, math.nan, self.values.size, self.unit, self.better)


def dumps(scores: Sequence[Scores]) -> bytes:
    """Scores as a safetensors file; the same scores give the same bytes."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for index, entry in enumerate(scores):
        arrays |= {f"{index:06d}/values": entry.values, f"{index:06d}/ids": entry.ids}
        if entry.group is not None:
            arrays[f"{index:06d}/group"] = entry.group
    facts = [{name: getattr(entry, name) for name in _FACTS} for entry in scores]
    # A single metadata entry, because safetensors does not guarantee the order of several.
    header = json.dumps({"format": FORMAT, "scores": facts}, sort_keys=True, ensure_ascii=True)
    return bytes(safe.save(arrays, metadata={"expunge": header}))


def loads(data: bytes) -> list[Scores]:
    """The scores that `dumps` wrote.

    Raises:
        RunError: The bytes hold no scores, are damaged, or have a newer format.
    """
    try:
        # The numpy reader drops the metadata, so read the header here: eight bytes of length, then JSON.
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["expunge"])
        arrays, form = safe.load(data), header["format"]
        if form not in READABLE:
            allowed = ", ".join(map(str, READABLE))
            raise RunError(f"found format {form}", where="scores", allowed=allowed, remedy="update expunge")
        return [
            Scores(
                **(_format_1(facts) if form == 1 else facts),
                values=arrays[f"{index:06d}/values"],
                ids=arrays[f"{index:06d}/ids"],
                group=arrays.get(f"{index:06d}/group"),
            )
            for index, facts in enumerate(header["scores"])
        ]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"no scores could be read ({type(error).__name__}: {error})",
            where="scores",
            remedy="delete the file and run again to recompute it",
        ) from None


def _format_1(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of format 1, with the `required` that it lacks."""
    return facts | {"required": facts["role"] == "knowledge" and facts["metric"] in _REQUIRED_IN_FORMAT_1}


def load(folder: Path, name: str, sha256: str | None = None) -> list[Scores]:
    """Read scores from a file of a record.

    Args:
        folder: The record's folder.
        name: Path of the file in the folder.
        sha256: The digest that the file must have.

    Raises:
        RunError: The file cannot be read, was changed, or holds no scores; names the file.
    """
    content = read_inside(folder, name, sha256)
    try:
        return loads(content)
    except ExpungeError as error:
        raise RunError(
            error.finding, where=f"{folder / name}.{error.where}", allowed=error.allowed, remedy=error.remedy
        ) from None
