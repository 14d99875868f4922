"""Remove what a bilinear layer says of the forget set, in closed form, with side effects known beforehand (2602.05635).

The direction g, in the layer's output, is the one that speaks for the right answers of the forget set: the first right
singular vector of the gradients of (logit of the right answer - mean logit). If the layer writes the logits and the
forget set is one class, g is its logit minus the mean. Then

    without `rank`    everything that the layer writes along g goes: P <- (I - gg') P. Of a class, the logit becomes the
                      mean of all logits, so that it is never the largest, and the order of the others stays
    with `rank`       of the modes of g, those that raise the right answers of the forget set most

Nothing is trained. The change of the layer's output over retained examples is predicted from second moments of its
products before the edit, and measured after it; the certificate states both. With `rank` the layer is factored again
from its function alone. If it has too few hidden units for that, the certificate states the residual, and the measured
change exceeds the predicted one.

What goes is what this layer says. Layers below may still know; `probe`, `patching` and `relearn` show it.

Cost: one gradient per forget example, and forward passes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.base.part import Count, NonNegative
from expunge.blocks.bilinear import BilinearLayer, bilinear_layers
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import chosen_layer, evaluating
from expunge.core.problem import Problem
from expunge.methods._layer_rows import forget_rows, retain_rows
from expunge.numerics.bilinear import GAP, predict_collateral, require_separate
from expunge.reporting.progress import Progress
from expunge.train.evaluation import sample

EXACT = 1e-6
"""Relative residual, and relative difference of predicted and measured change, up to which the edit is exact."""
ALIGNED = 0.9
"""Share of the gradients' energy that the directions should explain."""

BELOW = "the layers below are as they were: add an [[audit]] `probe`, because accuracy does not show what they know"


@dataclass(frozen=True)
class Certificate:
    """What was removed from a bilinear layer, and what that changes elsewhere."""

    layer: str
    """Path of the layer."""
    directions: int
    """Output directions in which something was removed."""
    explained: float
    """Share of the energy of the forget set's gradients that lies in these directions."""
    rank: int
    """Rank of the removed forms, summed over directions."""
    gap: float
    """Smallest relative spectral gap to what stays; infinite if nothing stays in the directions."""
    predicted: float
    """Mean squared change of the layer's output over retained inputs, from second moments before the edit."""
    measured: float
    """The same, measured after the edit."""
    share: float
    """`measured`, divided by the mean square of the output before."""
    residual: float
    """Relative error of the factors that the layer has now; 0 if they did not have to be found again."""

    def __str__(self) -> str:
        gap = "nothing stays" if math.isinf(self.gap) else f"spectral gap {self.gap:.2g}"
        text = (
            f"remove_modes: {self.layer}: rank {self.rank} removed in {self.directions} output directions ({gap}); "
            f"collateral predicted {self.predicted:.6g}, measured {self.measured:.6g} ({self.share:.1%} of the output)"
        )
        return "; ".join([text, *self.warnings(), BELOW])

    def warnings(self) -> list[str]:
        """What is not as it should be."""
        notes = []
        if self.explained < ALIGNED:
            notes.append(
                f"these directions hold {self.explained:.0%} of the forget set's gradients: its answers have no common "
                "direction, as those of a class have"
            )
        if self.residual > EXACT:
            notes.append(f"the hidden units are too few to be exact, residual {self.residual:.1e}")
        return notes


@dataclass(frozen=True)
class RemoveModes(Method):
    """Closed-form removal of an output direction of a bilinear layer, or of some of its modes."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    blocks: ClassVar[tuple[type[nn.Module], ...]] = (BilinearLayer,)
    cite: ClassVar[str] = "nema2026structural"
    paper: ClassVar[str] = "bilinear MLPs, 2026"
    effort: ClassVar[str] = "F"

    layer: str = ""
    """Path of the bilinear layer; by default the last one."""
    directions: Count = 1
    """Output directions: one for a class, as many as there are classes to forget."""
    rank: Count | None = None
    """Modes to remove in each direction; by default all that the layer writes along it."""
    gap: NonNegative = GAP
    """Smallest allowed spectral gap between removed modes and those that stay, relative to the strongest mode."""
    count: Count = 2000
    """Retain examples over which side effects are measured, a fixed random part."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose layer cannot change, or has fewer outputs or a smaller width than is to be removed.

        Raises:
            SpecError: There is no such layer, or a number is too large for it.
            MissingError: Its weights are frozen.
        """
        if not bilinear_layers(model):
            return
        path, layer = self.chosen(model)
        width = min(side.weight.shape[1] + (side.bias is not None) for side in (layer.left, layer.right))
        for name, value, most in (("directions", self.directions, layer.out.out_features), ("rank", self.rank, width)):
            if value is not None and value > most:
                raise SpecError(f"found {value}, and {path!r} has {most}", where=name, allowed=f"at most {most}")
        frozen = [name for name, p in layer.named_parameters() if not p.requires_grad]
        if frozen:
            raise MissingError(f"{path}.{frozen[0]} is frozen", where="model", remedy="unfreeze the bilinear layer")

    def chosen(self, model: nn.Module) -> tuple[str, BilinearLayer]:
        """The bilinear layer and its path.

        Raises:
            SpecError: There is no such layer.
        """
        return chosen_layer("bilinear layer", bilinear_layers(model), self.layer)

    def expected_gradients(self, retain: int, forget: int) -> float:
        """One gradient per forget example."""
        return forget

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Remove, and say the certificate on stderr."""
        count = len(job.problem.forget)
        if not job.meter.affords(count):
            raise SpecError(f"it needs {count} gradients", where="budget", allowed=f"at least {count}")
        job.meter.charge(count)
        Progress().say(str(self.edit(student, job.problem)))
        return student

    def edit(self, model: nn.Module, problem: Problem) -> Certificate:
        """Remove, in place.

        Raises:
            SpecError: The spectrum does not separate the modes from those that stay; or the layer has two inputs, or is
                still a gate.
        """
        path, layer = self.chosen(model)
        if not layer.shared:
            raise SpecError(f"{path!r} has two inputs", where="layer", remedy="edit it with its own methods")
        with evaluating(model):
            forget, gradients = forget_rows(model, layer, problem)
            retain = retain_rows(model, layer, problem, sample(problem.retain, self.count, "remove_modes"))
        units, explained = _directions(gradients, self.directions)
        before = copy.deepcopy(layer).cpu().double()
        removals = [self._removal(before, unit, forget) for unit in units]
        predicted, residual = _predicted(removals, _with_one(retain, before)), 0.0
        for unit, removal in zip(units, removals, strict=True):
            layer.remove_direction(unit) if self.rank is None else layer.append(
                removal.left, removal.right, removal.out
            )
        if self.rank is not None:
            residual = layer.refactor()
        with torch.no_grad():
            was, now = before(retain), copy.deepcopy(layer).cpu().double()(retain)
        measured, size = (float(t.square().sum(1).mean()) for t in (now - was, was))
        return Certificate(
            path,
            len(units),
            explained,
            sum(removal.rank for removal in removals),
            min(removal.gap for removal in removals),
            predicted,
            measured,
            measured / size if size else 0.0,
            residual,
        )

    def _removal(self, layer: BilinearLayer, unit: Tensor, forget: Tensor) -> _Removal:
        """The change of the layer in one direction: of everything along it, or of its modes that matter most."""
        if self.rank is None:
            left, right, out = layer.factors()
            if layer.out.bias is not None:
                # The product of two constant features is the constant of the output.
                constant = torch.zeros_like(left[:1])
                constant[0, -1] = 1
                left, right = (torch.cat([side, constant]) for side in (left, right))
                out = torch.cat([out, layer.out.bias.detach()[:, None]], 1)
            strengths = layer.modes(unit).strengths.abs()
            rank = int((strengths > EXACT * strengths.max()).sum())
            return _Removal(left, right, -torch.outer(unit, unit @ out), rank, math.inf)
        modes = layer.modes(unit)
        raised = modes.strengths * (_with_one(forget, layer) @ modes.left).square().mean(0)
        chosen = raised.argsort(descending=True)[: self.rank].tolist()
        require_separate(modes, chosen, self.gap)
        out = -torch.outer(unit, modes.strengths[chosen])
        return _Removal(modes.left[:, chosen].T, modes.right[:, chosen].T, out, len(chosen), modes.gap(chosen))


@dataclass(frozen=True, eq=False)
class _Removal:
    """A change of a layer's output: products of `left` and `right`, weighted by `out`."""

    left: Tensor
    right: Tensor
    out: Tensor
    rank: int
    gap: float


def _predicted(removals: list[_Removal], rows: Tensor) -> float:
    """Mean squared change of the output, from the second moments of the products."""
    left, right = (torch.cat([getattr(r, side) for r in removals]) for side in ("left", "right"))
    products = (rows @ left.T) * (rows @ right.T)
    moments = products.T @ products / len(rows)
    change = torch.cat([removal.out for removal in removals], 1)
    return predict_collateral(change, torch.eye(len(change)).to(change), moments)


def _with_one(rows: Tensor, layer: BilinearLayer) -> Tensor:
    """Inputs with the constant feature that biases are factors of."""
    return rows if layer.left.bias is None else torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def _directions(gradients: Tensor, count: int) -> tuple[list[Tensor], float]:
    """Orthogonal unit directions that hold most of the gradients' energy, each along their mean, and its share.

    Raises:
        SpecError: The gradients are zero, or span fewer directions.
    """
    _, sizes, rows = torch.linalg.svd(gradients, full_matrices=False)
    spanned = int((sizes > EXACT * sizes[:1]).sum()) if sizes.numel() else 0
    if count > spanned:
        finding = f"the forget set's answers depend on {spanned} output directions of the layer"
        raise SpecError(finding, where="directions", allowed=f"at most {spanned}", remedy="name another layer")
    mean = gradients.mean(0)
    units = [row if row @ mean >= 0 else -row for row in rows[:count]]
    return units, float(sizes[:count].square().sum() / sizes.square().sum())
