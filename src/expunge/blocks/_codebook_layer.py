"""A multi-head quantiser: each segment of a vector is replaced by the nearest vector of a codebook (2107.02367).

    h in R^m is cut into G segments;  o_i = argmin_j |s_i - e_j|;  the output is e_{o_1}, ..., e_{o_G}

In training the layer has a loss of its own. Its gradients join those of the task in the backward pass, so every
training loop trains the codes, and the loss that the loop prints is that of the task.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.blocks._codes import Communicate, k_means, looked_up, scores, shares
from expunge.core.norms import statistics_held
from expunge.core.recompute import batch_share
from expunge.numerics.estimators import STGS, DecoupledST

Kind = Literal["gradient", "ema", "fsq", "gumbel", "decoupled_st"]
OPEN, MOVED, SUBSTITUTED = 0, 1, 2
"""The fate of a code: in use; deleted, and its inputs go to the nearest code in use; deleted, and its inputs get the
codebook's substitute."""
ORPHAN = -1
"""The index of an input whose code is deleted without a successor."""
DECAY = 0.99
"""Of the moving averages, per training pass."""
DEAD = 0.01
"""A code that is used less than this share of the average is dead."""


class CodebookLayer(nn.Module):
    """Replaces segments of vectors by codes.

    Args:
        width: Size of the vectors.
        heads: Segments per vector, G.
        codes: Codes per codebook, L.
        shared: Whether all heads use one codebook; otherwise each has its own.
        kind: How codes are learned and chosen; see `Codebook`.
        commitment: Weight of the commitment term, beta.
        weight: Weight of the layer's whole loss.
        revive: Whether dead codes start again at random inputs.
        temperature: Of random choices; with `decoupled_st` that of the forward pass.
        backward: With `decoupled_st`, the temperature of the backward pass.
        dim: The dimension of the channels.

    Raises:
        SpecError: Heads do not divide the width, or the number of codes of `fsq` is no power of two.
    """

    fate: Tensor
    substitute: Tensor
    running_usage: Tensor
    running_sums: Tensor
    started: Tensor
    codebook: Tensor

    def __init__(
        self,
        width: int,
        heads: int = 1,
        codes: int = 64,
        *,
        shared: bool = True,
        kind: Kind = "gradient",
        commitment: float = 0.25,
        weight: float = 1.0,
        revive: bool = True,
        temperature: float = 1.0,
        backward: float = 1.0,
        dim: int = -1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise SpecError(f"{heads} heads do not divide a width of {width}", where="heads", allowed=divisors(width))
        self.width, self.heads, self.codes, self.kind, self.dim = width, heads, codes, kind, dim
        self.commitment, self.weight, self.revive = commitment, weight, revive
        self.estimator = {
            "gumbel": lambda: STGS(temperature),
            "decoupled_st": lambda: DecoupledST(temperature, backward),
        }.get(kind, lambda: None)()
        books, size = 1 if shared else heads, width // heads
        if kind == "fsq":
            self.levels = _levels(codes)
            self.squeeze, self.spread = nn.Linear(size, len(self.levels)), nn.Linear(len(self.levels), size)
        table = _grid(self.levels).expand(books, -1, -1).clone() if kind == "fsq" else torch.randn(books, codes, size)
        if kind in ("ema", "fsq"):
            self.register_buffer("codebook", table)
        else:
            self.codebook = nn.Parameter(table)
        if kind == "ema":
            self.register_buffer("running_sums", table / codes)
        self.register_buffer("running_usage", torch.full((books, codes), 1 / codes))
        self.register_buffer("fate", torch.zeros(books, codes, dtype=torch.uint8))
        self.register_buffer("substitute", torch.zeros(books, size))
        self.register_buffer("started", torch.tensor(kind == "fsq"))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Forget the codes: random ones, until the first training pass places them. Deleted codes stay deleted."""
        if self.kind == "fsq":
            return  # Its codes are a fixed grid.
        self.codebook.data.normal_()
        self.running_usage.fill_(1 / self.codes)
        if self.kind == "ema":
            self.running_sums.copy_(self.codebook / self.codes)
        self.started.fill_(False)

    @property
    def books(self) -> int:
        """Number of codebooks."""
        return len(self.codebook)

    def forward(self, hidden: Tensor) -> Tensor:
        """The output with codes in the place of its vectors, of the same shape and dtype.

        Raises:
            SpecError: The channels are not `width`; or at the first training pass, there are fewer vectors than codes.
        """
        rows = self._rows(hidden)
        learns = self.training and torch.is_grad_enabled()
        moves = learns and not statistics_held()
        if moves:
            self._start(rows.detach())
        emitted, index = self._sampled(rows) if learns and self.estimator else self._nearest(rows, learns)
        if moves:
            self._count(rows.detach(), index)
        return self._whole(emitted, hidden)

    @torch.no_grad()
    def indices(self, hidden: Tensor) -> Tensor:
        """The codes of an input, `[n, heads]` for its n vectors; `ORPHAN` where the code is deleted."""
        rows = self._rows(hidden)
        index = self._chosen(self._points(rows))
        index = index.masked_fill(looked_up(self.fate.unsqueeze(-1), index).squeeze(-1) > OPEN, ORPHAN)
        return index.view(-1, self.heads) if self.books == 1 else index.T

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """What each code emits, `[books, codes, width / heads]`; the substitute where it is deleted."""
        table = self._table()
        return self.spread(table) if self.kind == "fsq" else table

    @torch.no_grad()
    def delete(self, chosen: Tensor, fate: int, substitute: Tensor | None = None) -> None:
        """Delete codes; none of them is emitted again, also not after further training.

        Args:
            chosen: `[books, codes]` bool.
            fate: `MOVED` or `SUBSTITUTED`.
            substitute: What `SUBSTITUTED` inputs get, `[books, width / heads]`; zeros by default.

        Raises:
            SpecError: It has another shape, or a codebook would have no code left.
        """
        if chosen.shape != self.fate.shape:
            finding = f"the mask has shape {list(chosen.shape)}"
            raise SpecError(finding, where="delete", allowed=f"{list(self.fate.shape)}, codebooks by codes")
        left = ~(chosen.to(self.fate.device) | (self.fate > OPEN))
        if not bool(left.any(1).all()):
            finding = f"codebook {int((~left.any(1)).nonzero()[0])} would have no code left"
            raise SpecError(finding, where="delete", allowed="at least one code in use per codebook")
        new = chosen.to(self.fate.device) & (self.fate == OPEN)
        self.fate[new] = fate
        self.running_usage[new] = 0
        if fate == MOVED and self.kind != "fsq":
            # Nothing compares with these codes any more. Those with a substitute stay: they say which inputs get it.
            self.codebook.data[new] = 0
        if substitute is not None:
            self.substitute.copy_(substitute)

    def perplexity(self) -> list[float]:
        """How many codes of each codebook are in use: exp of the entropy of their moving shares."""
        p = self.running_usage.double() / self.running_usage.double().sum(1, keepdim=True).clamp(min=1e-12)
        numbers: list[float] = torch.special.entr(p).sum(1).exp().tolist()
        return numbers

    def dead(self) -> Tensor:
        """Which codes are hardly used, `[books, codes]` bool; deleted ones are not among them."""
        return (self.running_usage < DEAD / self.codes) & (self.fate == OPEN)

    def extra_repr(self) -> str:
        """What `print` shows."""
        deleted = int((self.fate > OPEN).sum())
        return f"{self.kind}, heads={self.heads}, books={self.books}, codes={self.codes}, deleted={deleted}"

    def _rows(self, hidden: Tensor) -> Tensor:
        """The segments, `[books, rows, size]`, in single precision or wider."""
        if not hidden.is_floating_point() or hidden.ndim < 2 or hidden.shape[self.dim] != self.width:
            finding = f"its input is {list(hidden.shape)} {hidden.dtype}"
            allowed = f"floating point with {self.width} channels in dimension {self.dim}"
            raise SpecError(finding, where="codebook", allowed=allowed, remedy="set dim, or put it elsewhere")
        moved = hidden.movedim(self.dim, -1).reshape(-1, self.heads, self.width // self.heads)
        moved = moved.to(torch.promote_types(moved.dtype, torch.float32))
        return moved.reshape(1, -1, moved.shape[-1]) if self.books == 1 else moved.transpose(0, 1)

    def _whole(self, rows: Tensor, hidden: Tensor) -> Tensor:
        """Segments as a tensor like the input."""
        last = hidden.movedim(self.dim, -1)
        whole = rows if self.books == 1 else rows.transpose(0, 1)
        return whole.reshape(last.shape).movedim(-1, self.dim).to(hidden.dtype)

    def _points(self, rows: Tensor) -> Tensor:
        """What is compared with codes: the rows, or their bounded projections."""
        return _bounded(self.squeeze(rows), self.levels) if self.kind == "fsq" else rows

    def _chosen(self, points: Tensor) -> Tensor:
        closed = self.fate == MOVED if self._edited() else None
        return scores(points.detach(), self.codebook.detach().to(points), closed).argmax(-1)

    def _edited(self) -> bool:
        """Whether a code is deleted."""
        return bool(self.fate.any())

    def _table(self) -> Tensor:
        """What each code emits, without a gradient; of `fsq` before `spread`."""
        table = self.codebook.detach()
        if self.kind == "fsq" or not self._edited():
            return table
        return torch.where((self.fate == SUBSTITUTED).unsqueeze(-1), self.substitute.unsqueeze(1), table)

    def _nearest(self, rows: Tensor, learns: bool) -> tuple[Tensor, Tensor]:
        points = self._points(rows)
        index = self._chosen(points)
        # A mean over vectors and heads; `commitment` is for one side of it.
        weight = self.weight * batch_share() / index.numel() if learns and self.kind in ("gradient", "ema") else 0.0
        orphans = looked_up((self.fate == SUBSTITUTED).unsqueeze(-1), index) if self._edited() else None
        emitted = Communicate.apply(
            points,
            self.codebook,
            looked_up(self._table().to(points), index),
            index,
            None if orphans is None else ~orphans.squeeze(-1),
            weight if self.kind == "gradient" else 0.0,
            weight * self.commitment,
        )
        if self.kind == "fsq":
            emitted = self.spread(emitted)
            if orphans is not None:
                emitted = torch.where(orphans, self.substitute.unsqueeze(1).to(emitted), emitted)
        return emitted, index

    def _sampled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Random codes, with the task's gradient also in the codebook."""
        assert self.estimator is not None
        codes = self.codebook.to(rows)
        closed = self.fate == MOVED
        # Finite, because a product of zero and infinity in the backward pass would be NaN.
        logits = scores(rows, codes).masked_fill(closed.unsqueeze(1), -1e9)
        chosen = self.estimator(logits, torch.default_generator)
        index = chosen.detach().argmax(-1)
        gone = (self.fate == SUBSTITUTED).unsqueeze(-1)
        return chosen @ torch.where(gone, self.substitute.unsqueeze(1).to(codes), codes), index

    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        """Before the pass: k-means at the first one; later, averages become codes, and dead codes start again."""
        if not bool(self.started):
            if rows.shape[1] < self.codes:
                raise SpecError(
                    f"the first batch has {rows.shape[1]} vectors for {self.codes} codes",
                    where="codebook.codes",
                    allowed="at most as many codes as vectors",
                    remedy="take fewer codes or larger batches",
                )
            self._set(k_means(rows, self.codes), torch.ones_like(self.fate, dtype=torch.bool))
            self.started.fill_(True)
            return
        if self.kind == "ema":
            open_ = self.fate == OPEN
            means = self.running_sums / self.running_usage.clamp(min=1e-12).unsqueeze(-1)
            self.codebook.copy_(torch.where(open_.unsqueeze(-1), means, self.codebook))
        # Not between micro-batches: the backward pass repeats the earlier ones, and must find the same codes.
        if self.revive and self.kind != "fsq" and batch_share() == 1 and self.running_usage.min() < DEAD / self.codes:
            dead = self.dead()
            if bool(dead.any()):
                fresh = torch.randint(rows.shape[1], dead.shape).to(rows.device)
                self._set(looked_up(rows, fresh), dead)
                self.running_usage[dead] = 1 / self.codes

    def _set(self, codes: Tensor, where: Tensor) -> None:
        self.codebook.data[where] = codes[where].to(self.codebook)
        if self.kind == "ema":
            self.running_sums[where] = codes[where].to(self.running_sums) * self.running_usage[where].unsqueeze(-1)

    @torch.no_grad()
    def _count(self, rows: Tensor, index: Tensor) -> None:
        self.running_usage.lerp_(shares(index, self.codes).to(self.running_usage), 1 - DECAY)
        if self._edited():
            self.running_usage.masked_fill_(self.fate > OPEN, 0)
        if self.kind == "ema":
            if batch_share() < 1:
                finding = "moving averages need the whole batch at once"
                raise SpecError(finding, where="accumulate", allowed="1 for codes of the kind ema")
            sums = torch.zeros_like(self.running_sums)
            sums.scatter_add_(1, index.unsqueeze(-1).expand_as(rows), rows.to(sums))
            self.running_sums.lerp_(sums / index.shape[1], 1 - DECAY)


def codebook_layers(model: nn.Module) -> dict[str, CodebookLayer]:
    """The model's codebooks by path, in the order of registration."""
    return {path: module for path, module in model.named_modules() if isinstance(module, CodebookLayer)}


def divisors(width: int) -> str:
    """The divisors of a width, for messages."""
    return ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)


def _levels(codes: int) -> tuple[int, ...]:
    """Levels of each scalar of `fsq`: fours, and one two where it is needed (2309.15505).

    Raises:
        SpecError: The number of codes is no power of two.
    """
    power = int(math.log2(codes))
    if codes < 2 or 2**power != codes:
        raise SpecError(f"found {codes}", where="codes", allowed="a power of two from 2 for fsq")
    return (4,) * (power // 2) + (2,) * (power % 2)


def _grid(levels: tuple[int, ...]) -> Tensor:
    """All combinations of levels, `[codes, scalars]`; the levels of a scalar lie one apart, on both sides of zero."""
    scalars = [torch.arange(count) - (count - 1) / 2 for count in levels]
    return torch.cartesian_prod(*scalars).view(-1, len(levels))


def _bounded(values: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Values squeezed to half a step beyond the outermost levels, so that each level gets a step of equal width."""
    return values.tanh() * (torch.tensor(levels).to(values) / 2)
