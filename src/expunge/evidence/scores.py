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
from expunge.evidence.contrast import contrast
from expunge.evidence.estimate import Better, Estimate, is_binary, over_examples, over_seeds
from expunge.evidence.intervals import Floats, Ints

Role = Literal["knowledge", "utility", "predictor", "description"]
"""Only `knowledge` and `utility` enter verdicts."""
Reduce = Literal["mean", "barrier", "single", "worst"]
"""How values become one number."""

FEWEST_OF_LABEL = 10
"""A label with fewer examples has no mean that could be judged."""
FORMAT, READABLE = 3, (1, 2, 3)
_FACTS = ("metric", "split", "role", "unit", "better", "sign", "reduce", "required", "bound")
_OPTIONAL: dict[str, type] = {
    "group": np.int64,
    "baseline": np.float64,
    "label": np.int64,
    "target": np.int64,
    "answer": np.int64,
}
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
    """`barrier`: the largest height of a path above the chord of its ends. `worst`: the lowest mean of a label."""
    required: bool = False
    """Knowledge only: whether `erased` depends on it, whatever the spec says."""
    bound: float = 0.02
    """Utility only: the largest loss that is not damage, in the unit of the values."""
    baseline: Floats | None = None
    """Value that the same model would have on each example by answers that do not depend on the input, `[n]`. Verdicts
    subtract it."""
    label: Ints | None = None
    """Label that each value belongs to, `[n]`; only for `worst`."""
    target: Ints | None = None
    """The class that each example should get, `[n]`; with `answer`, and for pages only."""
    answer: Ints | None = None
    """The class that the model gave, `[n]`."""

    def __post_init__(self) -> None:
        for name, kind in (("role", Role), ("better", Better), ("reduce", Reduce)):
            if getattr(self, name) not in get_args(kind):
                raise unknown(name, str(getattr(self, name)), get_args(kind), where=f"{self.metric}.{name}")
        if self.sign not in (1, -1):
            raise SpecError(f"found {self.sign!r}", where=f"{self.metric}.sign", allowed="1, -1")
        self._freeze("values", np.float64)
        self._freeze("ids", np.int64)
        for name, dtype in _OPTIONAL.items():
            if getattr(self, name) is not None:
                self._freeze(name, dtype)
        if (self.label is None) == (self.reduce == "worst"):
            raise SpecError(f"found labels with {self.reduce!r}", where=f"{self.metric}.label", allowed="with 'worst'")
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

    def labels(self) -> list[int]:
        """Labels with at least `FEWEST_OF_LABEL` examples; if there are none, all labels."""
        if self.label is None:
            return []
        labels, counts = np.unique(self.label, return_counts=True)
        enough = labels[counts >= FEWEST_OF_LABEL]
        return [int(label) for label in (enough if enough.size else labels)]

    def reduced(self) -> float:
        """The values reduced to one number, in their own orientation."""
        with np.errstate(invalid="ignore"):  # a diverged model may have infinite losses; NaN is then the answer
            if self.reduce == "barrier":
                chord = np.linspace(self.values[0], self.values[-1], self.values.size)
                return float(np.max(self.values - chord))
            if self.reduce == "worst":
                means = [self.sign * self.values[self.label == label].mean() for label in self.labels()]
                return float(self.sign * min(means))
            return float(np.mean(self.values))

    def estimate(self) -> Estimate:
        """The value for this seed, with the 90 % interval of sampling over examples.

        Returns:
            The estimate; low and high are NaN unless the value is a mean over examples.
        """
        if self.reduce == "mean":
            return over_examples(self.values, self.unit, self.better, self.group)
        return Estimate(self.reduced(), math.nan, math.nan, self.values.size, self.unit, self.better)


def over_runs(scores: Sequence[Scores]) -> Estimate:
    """The mean over seeds with its 90 % interval, from the scatter of seeds and the sampling of examples.

    Seeds that agree to the last digit still have the error of their examples, as in verdicts.

    Args:
        scores: One metric of one model, one entry per seed.
    """
    first = scores[0]
    if len(scores) < 2 or first.reduce != "mean":
        return over_seeds([entry.reduced() for entry in scores], first.unit, first.better)
    values = np.concatenate([entry.values for entry in scores])
    step = float(np.ptp(values)) or 1.0 if is_binary(values) else 0.0
    mean = contrast([entry.values for entry in scores], [entry.draws for entry in scores], step=step)
    return Estimate(mean.mean, mean.low, mean.high, len(scores), first.unit, first.better)


def dumps(scores: Sequence[Scores]) -> bytes:
    """Scores as a safetensors file; the same scores give the same bytes."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for index, entry in enumerate(scores):
        arrays |= {f"{index:06d}/values": entry.values, f"{index:06d}/ids": entry.ids}
        optional = {name: getattr(entry, name) for name in _OPTIONAL}
        arrays |= {f"{index:06d}/{name}": array for name, array in optional.items() if array is not None}
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
                baseline=arrays.get(f"{index:06d}/baseline"),
                label=arrays.get(f"{index:06d}/label"),
                target=arrays.get(f"{index:06d}/target"),
                answer=arrays.get(f"{index:06d}/answer"),
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
