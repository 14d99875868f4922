"""Delete the codes of a codebook that speak for the forget set, without training; and say what else they spoke for.

Codes are deleted in the order of their selectivity, P(code | forget) / P(code | retain), counted over all positions and
heads (of one codebook a head, each has its own counts). `policy` says what a vector gets whose code is deleted:

    null            a zero vector: the layers above learn of the deleted codes only that it was one of them
    nearest         the nearest code that is left; codes to which the forget set moves then are deleted in turn
    retain_mean     the mean of what retained examples send through the codes that are left

With `null`, the answer to an example whose codes are all deleted is what the layers above make of zeros. If that is the
right answer, the target is not reached, and the certificate says so; then take `retain_mean`. The model is left in the
measured state that knows least.

Deletion ends at `count` codes, or as soon as the share of right answers on the forget set is at most `target`. The
curve of forgetting against collateral is said on stderr.

What goes is what the codebook lets through. The layers below, the sender, are untouched: they still know, and anybody
with the weights can read them there, or take the codebook out. `patching` and `probe` behind the sender show it;
accuracy does not. With `null` and `retain_mean` the deleted vectors also stay in the weights, because they say which
inputs are theirs.

Cost: forward passes, at most 30 over the forget set and over the retained examples of the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, Share
from expunge.blocks.codebook import MOVED, OPEN, SUBSTITUTED, CodebookLayer, codebook_layers
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import chosen_layer, evaluating
from expunge.core.problem import Problem
from expunge.reporting.progress import Progress
from expunge.train.evaluation import sample, tracked
from expunge.train.loop import in_order


@dataclass(frozen=True)
class Point:
    """What is known after so many codes were deleted, as means of `Objective.known`."""

    codes: int
    forget: float
    retain: float

    def __str__(self) -> str:
        return f"{self.codes}: {self.forget:.3g} / {self.retain:.3g}"


@dataclass(frozen=True)
class Deletion:
    """What was deleted from a codebook, and what that costs."""

    layer: str
    """Path of the codebook."""
    deleted: Tensor
    """`[books, codes]` bool."""
    selectivity: Tensor
    """P(code | forget) / P(code | retain), `[books, codes]`; infinite for codes that no retained example uses."""
    curve: tuple[Point, ...]
    """From 0 deleted codes on, in increasing order; the last measured state is not always the last point."""
    done: Point
    """The state that the model is in."""
    retained: float
    """Share of the retained examples' vectors whose code was deleted."""
    reached: bool
    """Whether the target was reached; true if the number of codes was given."""

    def __str__(self) -> str:
        start, end = self.curve[0], self.done
        text = (
            f"delete_codes: {self.layer}: {end.codes} of {self.deleted.numel()} codes deleted; known of forget "
            f"{start.forget:.3g} to {end.forget:.3g}, of retain {start.retain:.3g} to {end.retain:.3g}; "
            f"{self.retained:.1%} of retained vectors had such a code; codes: forget / retain "
            f"{', '.join(map(str, self.curve))}"
        )
        note = "" if self.reached else "; the target was not reached: these examples share their codes with others"
        return f"{text}{note}; the layers below the codebook are unchanged and still know"


@dataclass(frozen=True)
class DeleteCodes(Method):
    """Deletion of the codes that are most selective for the forget set."""

    needs: ClassVar[frozenset[str]] = frozenset({"decisions"})
    blocks: ClassVar[tuple[type[nn.Module], ...]] = (CodebookLayer,)
    cite: ClassVar[tuple[str, ...]] = ("shah2023unlearning", "liu2021discrete")
    paper: ClassVar[str] = "sparse representations, 2023"
    effort: ClassVar[str] = "F"

    layer: str = ""
    """Path of the codebook; by default the last one."""
    policy: Literal["null", "nearest", "retain_mean"] = "null"
    """What a vector gets whose code is deleted: zeros, the nearest code left, or the mean of retained vectors."""
    count: Count | None = None
    """Codes to delete; by default as many as the target needs."""
    target: Share = 0.0
    """Share of right answers on the forget set at which deletion ends. For examples of several classes take what a
    retrained model knows of them, which is more than 0."""
    most: Share = 0.5
    """Largest share of all codes that may be deleted to reach the target."""
    examples: Count = 2000
    """Retain examples over which codes are counted and collateral is measured, a fixed random part."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without this codebook, or with fewer codes than are to be deleted.

        Raises:
            SpecError: There is no such codebook, or no code would be left.
        """
        if not codebook_layers(model):
            return
        path, layer = self.chosen(model)
        left = int((layer.fate == OPEN).sum()) - layer.books
        if self.count is not None and self.count > left:
            finding = f"found {self.count}, and {path!r} has {layer.fate.numel()} codes"
            raise SpecError(finding, where="count", allowed=f"at most {left}, so that one code per codebook is left")

    def chosen(self, model: nn.Module) -> tuple[str, CodebookLayer]:
        """The codebook and its path.

        Raises:
            SpecError: There is no such codebook.
        """
        return chosen_layer("codebook", codebook_layers(model), self.layer)

    def expected_gradients(self, retain: int, forget: int) -> float:
        """None."""
        return 0.0

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Delete, and say the certificate on stderr."""
        Progress().say(str(self.edit(student, job.problem)))
        return student

    def edit(self, model: nn.Module, problem: Problem) -> Deletion:
        """Delete, in place.

        Raises:
            SpecError: More codes are to be deleted than the forget set uses, or the codebook does not run.
        """
        path, layer = self.chosen(model)
        kept = sample(problem.retain, self.examples, "delete_codes")
        counts = [code_counts(model, layer, problem, ids) for ids in (problem.forget, kept)]
        order, ratio = ranked(layer, *counts)
        most = layer.fate.numel() if self.count is not None else max(int(self.most * layer.fate.numel()), 1)
        if self.policy == "nearest":
            order += self._next(model, layer, problem, kept, order, most)
        most = min(len(order), most)
        if self.count is not None and self.count > most:
            finding = f"found {self.count}, and the forget set uses {most} codes that can go"
            raise SpecError(finding, where="count", allowed=f"at most {most}")
        points: dict[int, Point] = {}

        def measured(codes: int) -> Point:
            if codes not in points:
                state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
                self._delete(layer, order[:codes], counts[1])
                forget, retain = (float(tracked(model, problem, ids).mean()) for ids in (problem.forget, kept))
                layer.load_state_dict(state)
                points[codes] = Point(codes, forget, retain)
            return points[codes]

        measured(0)
        done = measured(self.count) if self.count is not None else self._searched(measured, most)
        if self.count is None and done.forget > self.target:
            # More codes would only cost more.
            done = min(points.values(), key=lambda point: (point.forget, point.codes))
        mask = self._delete(layer, order[: done.codes], counts[1])
        lost = float(counts[1][mask].sum() / counts[1].sum().clamp(min=1))
        curve = tuple(points[codes] for codes in sorted(points))
        reached = self.count is not None or done.forget <= self.target
        return Deletion(path, mask, ratio, curve, done, lost, reached)

    def _next(
        self,
        model: nn.Module,
        layer: CodebookLayer,
        problem: Problem,
        kept: Tensor,
        order: list[tuple[int, int]],
        most: int,
    ) -> list[tuple[int, int]]:
        """The codes to which the forget set moves when those in `order` are gone, and so on, up to `most` in all."""
        state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        further: list[tuple[int, int]] = []
        new = order
        while new and len(order) + len(further) < most:
            retain = code_counts(model, layer, problem, kept)
            self._delete(layer, new, retain)
            new, _ = ranked(layer, *(code_counts(model, layer, problem, ids) for ids in (problem.forget, kept)))
            further += new
        layer.load_state_dict(state)
        return further

    def _searched(self, measured: Callable[[int], Point], most: int) -> Point:
        """The fewest codes that reach the target, on a grid that grows by half and then by bisection; or the most."""
        below, point = 0, measured(0)
        for codes in grid(most):
            if point.forget <= self.target:
                break
            below, point = point.codes, measured(codes)
        while point.forget <= self.target and point.codes - below > 1:
            middle = measured((below + point.codes) // 2)
            below, point = (below, middle) if middle.forget <= self.target else (middle.codes, point)
        return point

    def _delete(self, layer: CodebookLayer, chosen: list[tuple[int, int]], retain: Tensor) -> Tensor:
        mask = torch.zeros(layer.fate.shape, dtype=torch.bool)
        for book, code in chosen:
            mask[book, code] = True
        substitute = None
        if self.policy == "retain_mean":
            weights = retain * ~mask.to(retain.device)
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
            substitute = (weights.unsqueeze(-1) * layer.vectors().to(weights)).sum(1)
        layer.delete(mask, MOVED if self.policy == "nearest" else SUBSTITUTED, substitute)
        return mask


def code_counts(model: nn.Module, layer: CodebookLayer, problem: Problem, ids: Tensor) -> Tensor:
    """How often each code is chosen on these examples, `[books, codes]` float64.

    Raises:
        SpecError: The codebook does not run.
    """
    counts, ran = torch.zeros(layer.fate.shape, dtype=torch.float64, device=layer.fate.device), False

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal ran
        ran = True
        index = layer.indices(inputs[0])
        columns = index.reshape(1, -1) if layer.books == 1 else index.T
        for book, column in enumerate(columns):
            counts[book] += torch.bincount(column[column >= 0], minlength=layer.codes)

    handle = layer.register_forward_pre_hook(add)
    try:
        with evaluating(model), torch.no_grad():
            for batch in in_order(problem.data, ids):
                problem.objective.decisions(model, batch)
    finally:
        handle.remove()
    if not ran:
        raise SpecError("it did not run", where="layer", remedy="name another codebook")
    return counts


def ranked(layer: CodebookLayer, forget: Tensor, retain: Tensor) -> tuple[list[tuple[int, int]], Tensor]:
    """Codes that the forget set uses, as (book, code), the most selective first; and the selectivity of all codes.

    Of equally selective ones the more frequent comes first. Each codebook keeps the code that would go last.
    """
    of_forget, of_retain = (c / c.sum(1, keepdim=True).clamp(min=1) for c in (forget, retain))
    ratio = torch.where(of_forget > 0, of_forget / of_retain, torch.zeros_like(of_forget))
    used = ((of_forget > 0) & (layer.fate == OPEN)).nonzero().tolist()
    order = sorted(((b, c) for b, c in used), key=lambda at: (-float(ratio[at]), -float(of_forget[at]), at))
    left, chosen = (layer.fate == OPEN).sum(1).tolist(), []
    for book, code in order:
        if left[book] > 1:
            left[book] -= 1
            chosen.append((book, code))
    return chosen, ratio


def grid(most: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 9, ... up to `most`."""
    codes = 1
    while codes < most:
        yield codes
        codes = max(codes + 1, codes * 3 // 2)
    if most:
        yield most
