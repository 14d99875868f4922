"""Gauss-Newton matrices and gradients of single examples, from whole Jacobians."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.problem import Problem
from expunge.numerics.linearised import Curvatures


def jacobian(model: nn.Module, problem: Problem, place: int) -> tuple[Tensor, Tensor]:
    """Logits of one example's decisions `[t, c]` and their derivatives `[t, c, p]`."""
    logits = problem.objective.decisions(model, problem.data[place]).logits
    rows = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True) for one in logits.flatten()]
    return logits.detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).view(*logits.shape, -1)


def curvature(model: nn.Module, problem: Problem, place: int) -> Tensor:
    """Mean over decisions of J^T (diag p - p p^T) J, `[p, p]`."""
    logits, slopes = jacobian(model, problem, place)
    p = logits.softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("tap,tab,tbq->pq", slopes, middle, slopes) / len(p)


def gradient(model: nn.Module, problem: Problem, place: int) -> Tensor:
    """Of the mean cross-entropy over decisions, `[p]`."""
    logits, slopes = jacobian(model, problem, place)
    targets = problem.objective.decisions(model, problem.data[place]).targets
    wrong = logits.softmax(1) - F.one_hot(targets, logits.shape[1])
    return torch.einsum("tap,ta->p", slopes, wrong) / len(wrong)


def curvatures(model: nn.Module, problem: Problem, ids: Tensor) -> Tensor:
    return torch.stack([curvature(model, problem, int(place)) for place in ids])


def of_hessians(hessians: Tensor, retained: int) -> Curvatures:
    """From positive semi-definite matrices `[m, p, p]`, the retain set's first, without their common range."""
    values, vectors = torch.linalg.eigh(hessians.double())
    assert float(values.min()) >= -1e-8 * float(values.abs().max())
    return Curvatures(vectors * values.clamp(min=0).sqrt()[:, None], retained)
