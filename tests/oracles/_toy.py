"""Small problems and models in double precision, so that only rounding separates a method from its formula."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from expunge.core.case import Meter
from expunge.core.data import IGNORE, Data
from expunge.core.job import Job
from expunge.core.problem import Problem
from expunge.models.gpt import GPT
from expunge.train.evaluation import known_share

# Closed forms in float64, a handful of operations deep.
EXACT = {"rtol": 1e-10, "atol": 1e-12}

ALL_AT_ONCE = 1000
"""A batch size above every set here: one step per pass."""


def classes(holdout: bool = True) -> Problem:
    """40 points of three classes: 6 to forget, 18 to retain, 10 for test, 6 held out."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(40, 5, generator=generator).double(), torch.arange(40) % 3
    data = Data(inputs, targets, torch.arange(24), torch.arange(24, 34), ("a", "b", "c"))
    unseen = torch.arange(34, 40) if holdout else torch.empty(0, dtype=torch.int64)
    return Problem(data, torch.arange(6), torch.arange(6, 24), data.test, holdout=unseen)


def tokens() -> Problem:
    """20 sequences of six letters, the first a prompt: 4 to forget, 10 to retain, 4 for test, 2 held out."""
    text = torch.randint(0, 7, (20, 7), generator=torch.Generator().manual_seed(0))
    targets = text[:, 1:].clone()
    targets[:, 0] = IGNORE
    data = Data(text[:, :-1], targets, torch.arange(14), torch.arange(14, 18), tuple("abcdefg"))
    return Problem(data, torch.arange(4), torch.arange(4, 14), data.test, holdout=torch.arange(18, 20))


def job(problem: Problem, original: nn.Module, seed: int = 0) -> Job:
    """A call of a method without recipe and budget."""
    return Job(problem, None, seed, Meter(), torch.device("cpu"), original)


def linear(seed: int = 0) -> nn.Sequential:
    """Softmax regression, whose gradients can be written down."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 3)).double()


def net(seed: int = 0) -> nn.Sequential:
    """Two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def gpt(seed: int = 0) -> nn.Module:
    """One block, tied embeddings."""
    torch.manual_seed(seed)
    return GPT(width=8, layers=1, heads=2)(tokens().data).double()


def knowing(model: nn.Module, problem: Problem) -> nn.Module:
    """A copy that was trained on the forget set until it knows most of it."""
    copied = copy.deepcopy(model)
    optimizer = torch.optim.Adam(copied.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        cross_entropy(problem, copied, problem.forget).backward()
        optimizer.step()
    copied.zero_grad()
    assert known_share(copied, problem, problem.forget) > 0.7
    return copied


def vector(model: nn.Module) -> Tensor:
    """All parameters, a tied one once."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def gradient(value: Tensor, model: nn.Module) -> Tensor:
    """Of a scalar, over all parameters."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def cross_entropy(problem: Problem, model: nn.Module, ids: Tensor) -> Tensor:
    """Mean over decisions, written out."""
    logits, targets = problem.objective.decisions(model, problem.data.batch(ids))[:2]
    return -logits.log_softmax(1)[torch.arange(len(targets)), targets].mean()


def divergence(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(reference || model), written out: a sum over classes, a mean over decisions."""
    p, q = (reference / temperature).softmax(1), (logits / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


def doubled(problem: Problem) -> Problem:
    """The problem with every example there twice."""
    once, n = problem.data, len(problem.data)
    data = Data(once.inputs.repeat(2, 1), once.targets.repeat(2), torch.arange(n), problem.test, once.labels)
    sets = {name: torch.cat([ids, ids + n]) for name, ids in (("forget", problem.forget), ("retain", problem.retain))}
    return replace(problem, data=data, **sets)
