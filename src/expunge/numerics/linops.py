"""Products of curvature matrices with vectors, over minibatches, without the matrices.

    L(w) = sum_b n_b l_b(w) / sum_b n_b,    H v = d/dw <dL/dw, v>,    G v = mean over b of J_b^T (d^2 l_b / df^2) J_b v,

with l_b the mean loss of batch b, n_b its number of examples, f its outputs, J_b their Jacobian. Both are exact: the
mean over batches of any sizes is that over all examples. H v differentiates twice (Pearlmutter 1994). G v, the
generalised Gauss-Newton product (Schraudolph 2002), also computes J v by two backward derivatives, because forward mode
lacks formulas that double backward has. Attention uses its plain kernel, the only one with a second derivative. A
complex weight is two real ones, next to each other in a vector.

    loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    product = hessian(loss, model.eval(), differentiable(model), [(inputs, targets)])
    top = lanczos(product, product.like, torch.Generator().manual_seed(0)).values

Cost of one product: about two gradients of each example for H, three for G; memory of two graphs of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.base.errors import RunError, SpecError
from expunge.numerics._failures import explain, require_exact, require_uncut
from expunge.numerics._modules import differentiable, require_fixed, require_parameters
from expunge.numerics.batches import rows
from expunge.numerics.norms import sound_norms
from expunge.numerics.real import as_real, flat, real_size, split

__all__ = ["CurvatureOperator", "bends", "differentiable", "gauss_newton", "hessian"]

Parts = Sequence[Tensor]


@dataclass(frozen=True)
class CurvatureOperator:
    """A symmetric matrix, the mean over batches, as a function on flat vectors; the functions below build it.

    Args:
        forward: Maps a batch to the tensor to differentiate.
        product: Maps that tensor, the batch and a vector in the parameters' shapes to the batch's product.
        model: The module.
        parameters: The parameters to differentiate by, in the order of the vectors' entries.
        batches: Read once per product.
        weight: A batch's weight in the mean.

    Raises:
        SpecError: The parameters cannot form a flat vector, or the batches are an iterator, which works only once.
    """

    forward: Callable[[Any], Tensor]
    product: Callable[[Tensor, Any, Parts], Parts]
    model: nn.Module
    parameters: Sequence[nn.Parameter]
    batches: Iterable[Any]
    weight: Callable[[Any], float]

    def __post_init__(self) -> None:
        require_parameters(self.parameters)
        if isinstance(self.batches, Iterator):
            finding = "an iterator can be read only once"
            raise SpecError(finding, where="batches", allowed="a list, or a loader in a fixed order")

    @property
    def size(self) -> int:
        """Number of rows, `p`: of real numbers."""
        return sum(map(real_size, self.parameters))

    @property
    def like(self) -> Tensor:
        """Zeros `[p]` in the parameters' real dtype and on their device."""
        return as_real(self.parameters[0].detach()).new_zeros(self.size)

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector.

        Args:
            vector: `[p]`, in the order of the parameters, each flattened.

        Returns:
            `[p]` in the parameters' real dtype, with 0 for a parameter that the loss does not depend on.

        Raises:
            SpecError: The vector has another shape; there is no example; the loss is not a scalar, or depends on no
                parameter; batch norm or dropout is in training mode.
            RunError: The loss is not finite, or has no second derivative or, through weight norm, a wrong one; names
                the batch, or the module.
        """
        if vector.shape != (self.size,):
            raise SpecError(f"has shape {list(vector.shape)}", where="vector", allowed=f"[{self.size}]")
        require_fixed(self.model)
        parts = split(vector.detach().to(self.like), self.parameters)
        total, weight = self.like, 0.0
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), sound_norms():
            for index, batch in enumerate(self.batches):
                share = self.weight(batch)
                total.add_(self._of_batch(batch, parts, index), alpha=share)
                weight += share
        if weight <= 0:
            raise SpecError("there is no example in them", where="batches", allowed="at least one example")
        return total / weight

    def _of_batch(self, batch: Any, parts: Parts, index: int) -> Tensor:
        value = self.forward(batch)
        if not value.isfinite().all():
            raise RunError(
                "the loss is not finite", where=f"batch {index}", remedy="look at its inputs and the weights"
            )
        if not value.requires_grad:
            raise _independent()
        try:
            products = self.product(value, batch, parts)
        except RuntimeError as error:
            ones = [torch.ones_like(part) for part in parts]
            attempt = partial(_twice, parameters=self.parameters, parts=ones, keep=True)
            explain(error, self.model, lambda: self.forward(batch), attempt)
        return flat(product.detach() for product in products)


def hessian(
    loss: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Any],
    weight: Callable[[Any], float] = rows,
) -> CurvatureOperator:
    """The Hessian of the mean loss.

    Args:
        loss: Maps the module and a batch to the batch's mean loss, a scalar.
        model: The module, in evaluation mode if it has batch norm or dropout.
        parameters: The parameters to differentiate by; `differentiable(model)` for all.
        batches: A list or loader that gives the same batches each time.
        weight: A batch's weight in the mean, by default its number of examples. A loss that is a mean over tokens needs
            the number of tokens.

    Raises:
        SpecError: The parameters cannot form a flat vector, or the batches are an iterator.
    """

    def product(value: Tensor, batch: Any, parts: Parts) -> Parts:
        return _twice(value, parameters, parts)

    return CurvatureOperator(lambda batch: _scalar(loss(model, batch)), product, model, parameters, batches, weight)


def gauss_newton(
    outputs: Callable[[nn.Module, Any], Tensor],
    loss: Callable[[Tensor, Any], Tensor],
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Any],
    weight: Callable[[Any], float] = rows,
) -> CurvatureOperator:
    """The generalised Gauss-Newton matrix; positive semi-definite if the loss is convex in the outputs.

    With cross-entropy over logits it is the Fisher information of the model's own predictions.

    Args:
        outputs: Maps the module and a batch to the outputs, of any shape.
        loss: Maps outputs and the batch to the batch's mean loss, a scalar.
        model: The module, in evaluation mode if it has batch norm or dropout.
        parameters: The parameters to differentiate by; `differentiable(model)` for all.
        batches: A list or loader that gives the same batches each time.
        weight: A batch's weight in the mean, by default its number of examples.

    Raises:
        SpecError: The parameters cannot form a flat vector, or the batches are an iterator.
    """

    def product(value: Tensor, batch: Any, parts: Parts) -> Parts:
        tangent = _forward_product(value, parameters, parts)
        leaf = value.detach().requires_grad_()
        curved = _twice(_finite(_scalar(loss(leaf, batch))), [leaf], [tangent])[0]
        return torch.autograd.grad(value, parameters, curved, allow_unused=True, materialize_grads=True)

    return CurvatureOperator(lambda batch: outputs(model, batch), product, model, parameters, batches, weight)


def bends(
    loss: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch: Any,
    vectors: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient of one batch's loss, and the loss's second derivative along some vectors, from one graph.

    For small batches this is faster than separate products: it reads the weights once for all vectors.

    Args:
        loss: Maps the module and a batch to the batch's mean loss, a scalar.
        model: The module, in evaluation mode if it has batch norm or dropout.
        parameters: The parameters to differentiate by.
        batch: The batch.
        vectors: Rows `[m, p]` in the order of the parameters.

    Returns:
        The gradient `[p]`, and `v^T H v` of every row, `[m]` in double precision.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), sound_norms():
        value = _scalar(loss(model, batch))
        require_exact(value)
        slopes = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        gradient = flat(slopes)
        curvatures = []
        for vector in vectors:
            product = torch.autograd.grad(
                gradient, parameters, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            pieces = vector.split([real_size(part) for part in product])
            pairs = zip(pieces, map(as_real, product), strict=True)
            curvatures.append(sum(float(piece @ part.flatten()) for piece, part in pairs))
    return gradient.detach(), torch.tensor(curvatures, dtype=torch.float64)


def _twice(loss: Tensor, parameters: Sequence[Tensor], parts: Parts, *, keep: bool = False) -> tuple[Tensor, ...]:
    """H v of a scalar."""
    # With this factor, every intermediate gradient has a graph, so an incomplete one can be detected.
    require_exact(loss)
    factor = torch.ones_like(loss, requires_grad=True)
    slopes = torch.autograd.grad(factor * loss, parameters, create_graph=True, allow_unused=True)
    used, along = _used(slopes, parts)
    return torch.autograd.grad(used, parameters, along, allow_unused=True, materialize_grads=True, retain_graph=keep)


def _forward_product(outputs: Tensor, parameters: Sequence[Tensor], parts: Parts) -> Tensor:
    """J v, as the derivative of <J^T u, v> by u, which is linear in u."""
    u = torch.ones_like(outputs, requires_grad=True)
    slopes = torch.autograd.grad(outputs, parameters, u, create_graph=True, allow_unused=True)
    used, along = _used(slopes, parts)
    return torch.autograd.grad(used, u, along, retain_graph=True)[0].detach()


def _used(slopes: Sequence[Tensor | None], parts: Parts) -> tuple[list[Tensor], list[Tensor]]:
    """The slopes of the parameters that the value depends on, and the vector's pieces for them."""
    pairs = [(slope, part) for slope, part in zip(slopes, parts, strict=True) if slope is not None]
    if not pairs:
        raise _independent()
    require_uncut(slope for slope, _ in pairs)
    return [slope for slope, _ in pairs], [part for _, part in pairs]


def _scalar(loss: Tensor) -> Tensor:
    if loss.ndim:
        raise SpecError(f"has shape {list(loss.shape)}", where="loss", allowed="the mean over the batch, a scalar")
    return loss


def _finite(loss: Tensor) -> Tensor:
    if not loss.isfinite():
        raise RunError("the loss is not finite", where="loss", remedy="look at the model's outputs and the targets")
    return loss


def _independent() -> SpecError:
    return SpecError("depends on none of the parameters", where="loss", remedy="compute it without detaching")
