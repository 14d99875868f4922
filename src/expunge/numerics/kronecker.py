"""Kronecker factors of layers: the second moments of inputs and of gradients at outputs (K-FAC).

    A = E[a a^T], G = E[g g^T]        the layer's block of the Fisher information is about G (x) A

a is what a weight multiplies, g the gradient of one case's loss at the layer's output (Martens and Grosse, 1503.05671;
of a convolution a is a patch, Grosse and Martens, 1602.01407). Nothing is centred, damped or added for the bias. The
cases are positions or examples (Eschenhagen et al., 2311.00636):

- `expand`: each position of each example is a case, as in the curvature edit of language models (2510.24256).
- `reduce`: each example is a case; a is the mean over its positions, and g the sum.

Of a batch only the inputs of layers and the gradients at their outputs are kept, and only until they are added. No
example's gradient by a weight is made. Layers with the same input tensor, such as the gate and the up projection of a
transformer, share one A. Sums are in float32 or wider. A layer that runs several times in a forward pass has the cases
of each run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.base.errors import RunError, SpecError, unknown
from expunge.numerics._capture import Losses
from expunge.numerics._cases import Cases, runs
from expunge.numerics._cases import Positions as Positions
from expunge.numerics._cases import Sharing as Sharing
from expunge.numerics.matrices import weight_matrix

_ABOUT = "about"


class LayerFactors(NamedTuple):
    """Both factors of one layer, and the number of cases of their mean."""

    inputs: Tensor
    """A, `[d_in, d_in]`; the same tensor for layers that share their input."""
    gradients: Tensor
    """G, `[d_out, d_out]`."""
    cases: int


@dataclass(frozen=True)
class KroneckerFactors:
    """Factors of several layers of one model.

    Args:
        layers: By path.
        about: What made them: `model`, a digest of its weights, and how cases and labels were chosen.
        eigenvalues: Of EK-FAC, `[d_out, d_in]` by path, in the eigenbasis of the factors; empty unless measured.
    """

    layers: Mapping[str, LayerFactors]
    about: Mapping[str, str] = field(default_factory=dict)
    eigenvalues: Mapping[str, Tensor] = field(default_factory=dict)

    def require(self, layers: Mapping[str, nn.Module], model: str, where: str) -> None:
        """Refuse factors of another model or of other layers, and factors that are not numbers.

        Args:
            layers: The layers that need factors, by path.
            model: Digest of their model's weights.
            where: Name of the factors, for messages.

        Raises:
            SpecError: The model differs, a layer has no factors, or they have another size or are not finite.
        """
        theirs = self.about.get("model", model)
        if theirs != model:
            raise SpecError(
                f"they belong to a model with digest {theirs[:12]}, and this model has {model[:12]}",
                where=where,
                allowed="factors of the same model",
                remedy="measure them again on this model",
            )
        for path, layer in layers.items():
            if path not in self.layers:
                raise unknown("layer", path, self.layers, where=where)
            _require_fitting(self.layers[path], weight_matrix(layer), f"{where} ({path})")

    def merged(self, other: KroneckerFactors, weight: float) -> KroneckerFactors:
        """Factors over a mixture of both sets of cases: (ours + weight * theirs) / (1 + weight), without eigenvalues.

        Raises:
            SpecError: A layer has no factors in `other`.
        """
        share, inputs, layers = weight / (1 + weight), dict[int, Tensor](), {}
        for path, ours in self.layers.items():
            if path not in other.layers:
                raise unknown("layer", path, other.layers, where="factors")
            theirs = other.layers[path]
            if id(ours.inputs) not in inputs:
                inputs[id(ours.inputs)] = ours.inputs.lerp(theirs.inputs.to(ours.inputs), share)
            gradients = ours.gradients.lerp(theirs.gradients.to(ours.gradients), share)
            layers[path] = LayerFactors(inputs[id(ours.inputs)], gradients, ours.cases + theirs.cases)
        return replace(self, layers=layers, eigenvalues={})

    def to(self, device: torch.device) -> KroneckerFactors:
        """The same factors on a device; shared ones stay shared."""
        moved = {id(layer.inputs): layer.inputs.to(device) for layer in self.layers.values()}
        layers = {
            path: LayerFactors(moved[id(layer.inputs)], layer.gradients.to(device), layer.cases)
            for path, layer in self.layers.items()
        }
        values = {path: tensor.to(device) for path, tensor in self.eigenvalues.items()}
        return replace(self, layers=layers, eigenvalues=values)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, a shared one once; `about` holds everything else as JSON in bytes."""
        first: dict[int, str] = {}
        for path, layer in self.layers.items():
            first.setdefault(id(layer.inputs), path)
        facts = {path: {"inputs": first[id(layer.inputs)], "cases": layer.cases} for path, layer in self.layers.items()}
        text = json.dumps({"about": dict(self.about), "layers": facts}, sort_keys=True)
        tensors = {f"inputs/{path}": self.layers[path].inputs for path in first.values()}
        tensors |= {f"gradients/{path}": layer.gradients for path, layer in self.layers.items()}
        tensors |= {f"eigenvalues/{path}": values for path, values in self.eigenvalues.items()}
        return tensors | {_ABOUT: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    def save(self, path: Path | str) -> None:
        """Write them as safetensors; what made them is in the file's metadata too."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, path, dict(self.about))


def load_factors(path: Path | str) -> KroneckerFactors:
    """Read factors that `KroneckerFactors.save` wrote.

    Raises:
        SpecError: The file cannot be read, or holds no factors.
    """
    try:
        tensors = load_file(path)
    except Exception as error:
        raise SpecError(
            f"cannot be read ({type(error).__name__})",
            where=str(path),
            allowed="a safetensors file of Kronecker factors",
            remedy="write it with expunge.train.curvature.kronecker_factors(...).save(path)",
        ) from None
    return factors_from(tensors, str(path))


def factors_from(tensors: Mapping[str, Tensor], where: str = "factors") -> KroneckerFactors:
    """The factors whose `tensors()` these are.

    Raises:
        SpecError: They are not complete.
    """
    try:
        facts = json.loads(bytes(tensors[_ABOUT].cpu().tolist()))
        layers = {
            path: LayerFactors(tensors[f"inputs/{of['inputs']}"], tensors[f"gradients/{path}"], of["cases"])
            for path, of in facts["layers"].items()
        }
        about = facts["about"]
    except (KeyError, ValueError, TypeError) as error:
        finding = f"holds no complete Kronecker factors ({type(error).__name__}: {error})"
        raise SpecError(finding, where=where, remedy="measure and save them again") from None
    values = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith("eigenvalues/")}
    return KroneckerFactors(layers, about, values)


def collect(
    model: nn.Module,
    losses: Losses,
    batches: Iterable[Any],
    layers: Mapping[str, nn.Module],
    *,
    sharing: Sharing = "expand",
    positions: Positions | None = None,
) -> KroneckerFactors:
    """Second moments over all batches, as in the head of this file.

    Args:
        model: The module, in evaluation mode.
        losses: Each example's loss `[b]`: the *sum* of the losses of its decisions.
        batches: The examples; none is kept.
        layers: Linear layers, Conv1D of transformers, and convolutions in one group, by path.
        sharing: What one case is.
        positions: Which positions count; all by default. Positions without a label are usually left out.

    Returns:
        Factors in float32 or wider, on the model's device, with an empty `about`.

    Raises:
        MissingError: A layer's weight is not one matrix that multiplies its input.
        RunError: A loss or a factor is not finite.
        SpecError: There is no batch, a layer does not run, or no position of it counts.
    """
    moments = _Moments(sharing)
    for batch in runs(model, losses, batches, layers, positions):
        moments.add(batch)
    for path in layers:
        if not moments.counts.get(path):
            finding = "it did not run" if path not in moments.counts else "none of its positions counts"
            raise SpecError(finding, where=path, remedy="leave the layer out, or give other examples")
    return KroneckerFactors({path: moments.mean(path) for path in layers})


def combined(parts: Sequence[KroneckerFactors], where: str = "factors") -> KroneckerFactors:
    """Factors over all cases, from those of parts that were measured apart, for example in several processes.

    Args:
        parts: Of the same model and layers, over disjoint sets of examples; eigenvalues of EK-FAC belong to the basis
            of their own part and are left out: measure them afterwards, in the basis of the whole.
        where: Name of the factors, for messages.

    Returns:
        Means over the cases of all parts; layers that share their input in the first part share it here.

    Raises:
        SpecError: There is no part, or parts have other layers, shapes, models or ways of measuring.
    """
    if not parts:
        raise SpecError("there are none", where=where, remedy="give at least one part")
    first = parts[0]
    for part in parts[1:]:
        _require_alike(first, part, where)
    inputs, layers = dict[int, Tensor](), {}
    for path, layer in first.layers.items():
        own = [part.layers[path] for part in parts]
        cases = sum(factors.cases for factors in own)
        if id(layer.inputs) not in inputs:
            inputs[id(layer.inputs)] = _weighted([(of.inputs, of.cases) for of in own], cases)
        gradients = _weighted([(of.gradients, of.cases) for of in own], cases)
        layers[path] = LayerFactors(inputs[id(layer.inputs)], gradients, cases)
    counted = {"examples": str(sum(int(part.about["examples"]) for part in parts))} if "examples" in first.about else {}
    return KroneckerFactors(layers, {**first.about, **counted})


def _weighted(parts: Sequence[tuple[Tensor, int]], cases: int) -> Tensor:
    first = parts[0][0]
    total = torch.zeros_like(first)
    for factor, count in parts:
        total.add_(factor.to(first), alpha=count / cases)
    return total


def _require_alike(ours: KroneckerFactors, theirs: KroneckerFactors, where: str) -> None:
    """Refuse parts that do not belong together; numbers of examples and seeds may differ."""
    for key in (ours.about.keys() | theirs.about.keys()) - {"examples", "seed"}:
        if ours.about.get(key) != theirs.about.get(key):
            found = f"one part has {key} {ours.about.get(key)!r}, another one {theirs.about.get(key)!r}"
            raise SpecError(found, where=where, allowed="parts that were measured on the same model in the same way")
    shapes = [{path: (f.inputs.shape, f.gradients.shape) for path, f in of.layers.items()} for of in (ours, theirs)]
    if shapes[0] != shapes[1]:
        path = next(p for p in {**shapes[0], **shapes[1]} if shapes[0].get(p) != shapes[1].get(p))
        raise SpecError(
            "one part has other factors of it", where=f"{where} ({path})", allowed="parts of the same layers"
        )


class _Moments:
    """Running sums; the inputs of layers that share them are added once."""

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.inputs: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.leader: dict[str, str] = {}
        self.means: dict[str, Tensor] = {}

    def add(self, batch: list[Cases]) -> None:
        sources: dict[str, list[Any]] = {}
        for cases in batch:
            sources.setdefault(cases.path, []).append(cases.source)
        self._match(sources)
        for cases in batch:
            path, rows = cases.path, cases.shared_as(self.sharing)
            if self.leader[path] == path:
                self.inputs[path] = _added(self.inputs.get(path), rows.inputs)
            self.gradients[path] = _added(self.gradients.get(path), rows.gradients)
            self.counts[path] = self.counts.get(path, 0) + len(rows.inputs)

    def _match(self, sources: Mapping[str, list[Any]]) -> None:
        """Find layers with the same inputs, and part those that had the same until now."""
        new: list[str] = []
        for path in sources:
            if path not in self.leader:
                self.leader[path] = next((other for other in new if sources[other] == sources[path]), path)
                new.append(path)
        for path, leader in self.leader.items():
            if leader != path and sources.get(path) != sources.get(leader):
                self.inputs[path], self.leader[path] = self.inputs[leader].clone(), path

    def mean(self, path: str) -> LayerFactors:
        leader, count = self.leader[path], self.counts[path]
        if leader not in self.means:
            self.means[leader] = self.inputs[leader] / count
        factors = LayerFactors(self.means[leader], self.gradients[path] / count, count)
        for name, factor in (("inputs", factors.inputs), ("gradients", factors.gradients)):
            if not factor.isfinite().all():
                finding = f"the second moment of its {name} is not finite"
                raise RunError(finding, where=path, remedy="look at the model's weights: its training diverged")
        return factors


def _added(total: Tensor | None, rows: Tensor) -> Tensor:
    return rows.T @ rows if total is None else total.addmm_(rows.T, rows)


def _require_fitting(factors: LayerFactors, weight: Tensor, where: str) -> None:
    d_out, d_in = weight.shape
    for name, factor, size in (("inputs", factors.inputs, d_in), ("gradients", factors.gradients, d_out)):
        if factor.shape != (size, size):
            raise SpecError(
                f"the factor of its {name} has shape {list(factor.shape)}",
                where=where,
                allowed=f"[{size}, {size}], for a weight of {d_out} outputs and {d_in} inputs",
                remedy="measure them again on this model",
            )
        if not factor.isfinite().all():
            finding = f"the factor of its {name} holds NaN or infinity"
            raise SpecError(finding, where=where, remedy="measure them again, from a model whose losses are finite")
