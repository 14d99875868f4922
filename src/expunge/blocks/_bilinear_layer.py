"""A bilinear layer: two learned projections are multiplied, and the products are projected (2410.08417).

    f(x) = P [(W x + a) * (V x + b)] + c          one input
    f(x, y) = P [(W x + a) * (V y + b)] + c       two inputs

Biases inside are a constant feature 1: the last column of the factors. Each output is a quadratic form of the input, so
a layer can be taken apart: `interaction` gives the form, `modes` its terms, and the `remove_` methods take some away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.numerics import bilinear as forms
from expunge.numerics.bilinear import GAP, Modes


class BilinearLayer(nn.Module):
    """Products of two linear projections, projected to the outputs.

    Args:
        inputs: Width of the input, or of the left one.
        hidden: Number of products.
        outputs: Width of the output.
        other: Width of a second input, which the right projection reads. By default both sides read the same input.
        bias: Whether the three projections have biases.
        dim: The dimension of the channels: -1, or 1 for feature maps (a 1 x 1 convolution).
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, other: int | None = None, bias: bool = True, dim: int = -1
    ) -> None:
        super().__init__()
        self.shared, self.dim = other is None, dim
        self.left = nn.Linear(inputs, hidden, bias)
        self.right = nn.Linear(inputs if other is None else other, hidden, bias)
        self.out = nn.Linear(hidden, outputs, bias)
        for projection in (self.left, self.right, self.out):
            # The product of two variables of variance 1 has variance 1, so each projection keeps the variance.
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.linear_share = 1.0
        """1 for a bilinear layer. Below 1 the left side is a gate, (1 - t) silu(z) + t z; see `anneal`."""
        self.cancelling = 0
        """Number of hidden units that only cancel others. What they cancel can be read from the weights."""

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """The outputs `[..., outputs]`, or `[b, outputs, ...]` with `dim` 1.

        Raises:
            SpecError: The layer has two inputs and got one, or the other way round.
        """
        if self.shared != (other is None):
            finding = f"got {'one input' if other is None else 'two inputs'}"
            allowed = "one input" if self.shared else "two inputs"
            raise SpecError(finding, where="bilinear layer", allowed=allowed)
        out: Tensor = self.out(self.products(inputs, other))
        return out.movedim(-1, self.dim) if self.dim != -1 else out

    def products(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """The products of the hidden units, `[..., hidden]`: what `out` reads."""
        x, y = (t if self.dim == -1 else t.movedim(self.dim, -1) for t in (inputs, inputs if other is None else other))
        z: Tensor = self.left(x)
        if self.linear_share < 1:
            z = torch.lerp(F.silu(z), z, self.linear_share)
        product: Tensor = z * self.right(y)
        return product

    def extra_repr(self) -> str:
        """What `print` shows."""
        return "" if self.linear_share == 1 else f"linear_share={self.linear_share}"

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """W `[h, d_x]`, V `[h, d_y]` and P `[o, h]` in double precision, on the CPU; W and V end with their biases.

        Raises:
            SpecError: The left side is still a gate.
        """
        if self.linear_share < 1:
            finding = f"its left side is still a gate (linear share {self.linear_share:g})"
            raise SpecError(finding, where="bilinear layer", remedy="train on while anneal(model, share) rises to 1")
        # On the CPU, because some accelerators have no double precision.
        left, right = (_with_bias(side).detach().cpu().double() for side in (self.left, self.right))
        return left, right, self.out.weight.detach().cpu().double()

    def interaction(self, direction: Tensor | None = None) -> Tensor:
        """The matrix of one output direction `[o]`, or the tensor of all outputs; symmetric for one shared input."""
        form = forms.interaction(*self.factors(), None if direction is None else direction.cpu().double())
        return forms.symmetric(form) if self.shared else form

    def modes(self, direction: Tensor) -> Modes:
        """The modes of one output direction `[o]`."""
        return forms.modes(self.interaction(direction), shared=self.shared)

    @torch.no_grad()
    def remove_direction(self, direction: Tensor) -> None:
        """Remove everything that the layer writes along an output direction, its constant too: P <- (I - gg') P."""
        unit = (direction / direction.norm()).to(self.out.weight)
        self.out.weight -= torch.outer(unit, unit @ self.out.weight)
        if self.out.bias is not None:
            self.out.bias.sub_(unit * (unit @ self.out.bias))

    @torch.no_grad()
    def remove_inputs(self, basis: Tensor, moments: Tensor | None = None) -> None:
        """Remove directions of the input from both sides, for every output.

        Args:
            basis: Columns that span them, `[d, r]`.
            moments: Second moments of the retained inputs, see `expunge.numerics.bilinear.projector`.
        """
        if not self.shared:
            raise SpecError("it has two inputs", where="bilinear layer", remedy="use remove_subspace")
        kept = forms.projector(basis.cpu().double(), None if moments is None else moments.cpu().double())
        for side in (self.left, self.right):
            side.weight -= (side.weight.cpu().double() @ kept).to(side.weight)

    def remove_modes(self, direction: Tensor, chosen: Sequence[int], gap: float = GAP) -> Modes:
        """Remove modes of an output direction, exactly, by hidden units that cancel them; then call `refactor`.

        Other directions, orthogonal to this one, do not change.

        Args:
            direction: g, `[o]`.
            chosen: Indices of the modes, from the strongest (0).
            gap: Smallest allowed spectral gap.

        Returns:
            All modes of the direction, as they were.

        Raises:
            SpecError: There is no such mode, or the spectrum does not separate it from those that stay.
        """
        decomposed = self.modes(direction)
        forms.require_separate(decomposed, chosen, gap)
        k, g = list(chosen), direction.double()
        self.append(
            decomposed.left[:, k].T, decomposed.right[:, k].T, -torch.outer(g / (g @ g), decomposed.strengths[k])
        )
        return decomposed

    def remove_subspace(self, direction: Tensor, left: Tensor, right: Tensor) -> None:
        """Remove the interaction of two input subspaces in an output direction; then call `refactor`.

        Args:
            direction: g, `[o]`.
            left: Projector of the left input, `[d_x, d_x]`, with the constant feature if there are biases.
            right: Projector of the right input.
        """
        form, g = self.interaction(direction), direction.double()
        u, s, vh = torch.linalg.svd(form - forms.remove_subspace(form, left.double(), right.double()))
        k = s > 1e-12 * s.max()
        self.append(u.T[: len(s)][k], vh[: len(s)][k], -torch.outer(g / (g @ g), s[k]))

    @torch.no_grad()
    def append(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Add hidden units that cancel others; their weights show what they cancel, until `refactor` replaces them."""
        whole = [torch.cat([ours, new]) for ours, new in zip(self.factors(), (left, right), strict=False)]
        self._assign(whole[0], whole[1], torch.cat([self.factors()[2], out], 1))
        self.cancelling += len(left)

    @torch.no_grad()
    def refactor(self, hidden: int | None = None) -> float:
        """Replace the weights by factors that depend only on the function that the layer computes now.

        Args:
            hidden: Number of hidden units; by default those that the layer had before any removal.

        Returns:
            The relative residual: 0 up to rounding if the units suffice. If not, raise `hidden`, or accept the change.
        """
        count = self.left.out_features - self.cancelling if hidden is None else hidden
        left, right, out = self.factors()
        # In a basis of what the units read, the form is smaller; the factors do not depend on the basis.
        x, y = [_basis(torch.cat([left, right]))] * 2 if self.shared else map(_basis, (left, right))
        form = forms.interaction(left @ x, right @ y, out)
        factors = forms.refactor(form, count, shared=self.shared)
        self._assign(factors.left @ x.T, factors.right @ y.T, factors.out)
        self.cancelling = 0
        return factors.residual

    def _assign(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        for side, rows in ((self.left, left), (self.right, right)):
            if side.bias is not None:
                _set(side, "bias", rows[:, -1])
                rows = rows[:, :-1]
            _set(side, "weight", rows)
            side.out_features = len(rows)
        _set(self.out, "weight", out)
        self.out.in_features = out.shape[1]


def anneal(model: nn.Module, share: float) -> None:
    """Set how linear the gates of all converted layers are: from 0, the gated layer, to 1, the bilinear one.

    Raise the share during training, for example by `anneal(model, min(1, epoch / 10))` before each epoch. The share is
    not stored with the weights.

    Raises:
        SpecError: The share is not in [0, 1], or the model has no bilinear layer.
    """
    layers = bilinear_layers(model)
    if not 0 <= share <= 1 or not layers:
        finding = f"found {share}" if layers else "the model has no bilinear layer"
        raise SpecError(finding, where="anneal", allowed="a share from 0 to 1, of a model with bilinear layers")
    for layer in layers.values():
        layer.linear_share = float(share)


def bilinear_layers(model: nn.Module) -> dict[str, BilinearLayer]:
    """The model's bilinear layers by path, in the order of registration."""
    return {path: module for path, module in model.named_modules() if isinstance(module, BilinearLayer)}


def _basis(rows: Tensor) -> Tensor:
    """Orthonormal columns that span the rows, `[d, r]`."""
    basis: Tensor = torch.linalg.qr(rows.T).Q
    return basis


def _with_bias(side: nn.Linear) -> Tensor:
    return side.weight if side.bias is None else torch.cat([side.weight, side.bias[:, None]], 1)


def _set(module: nn.Linear, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    if old.shape == value.shape:
        # In place, so that an optimizer keeps its parameter.
        old.copy_(value)
    else:
        setattr(module, name, nn.Parameter(value.to(old).clone(), old.requires_grad))
