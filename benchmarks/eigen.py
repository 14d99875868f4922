"""Top Hessian eigenvalue by our Lanczos against SciPy's `eigsh` and PyHessian, at equal error: products, then seconds.

Each goes through falling tolerances, and the first counts at which its *true* error is within the aim (truth: `eigsh`
at 1e-10), as a mean over three starts. The demo's CNN and an MLP, both narrower, after three epochs on 1,000 images of
Fashion-MNIST; the Hessian is that of the mean cross-entropy on 200 of them, in double precision on one thread. `eigsh`
takes at least `ncv + 1` products; 20 is its default. PyHessian takes part where it is installed (`pip install --no-deps
pyhessian`; it is GPL, and no part of this package): power iteration that stops where its value changes little, which is
no error, so that its default is shown with the error that it has.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.core.case import train_model
from expunge.core.data import Batch
from expunge.data.fashion_mnist import FashionMNIST
from expunge.models.cnn import CNN
from expunge.models.mlp import MLP
from expunge.numerics.lanczos import lanczos
from expunge.numerics.linops import CurvatureOperator, differentiable, hessian
from expunge.train.training import TrainedRecipe, Training

ERRORS = (1e-3, 1e-6)
TOLERANCES = [10.0**-k for k in range(1, 10)]
MODELS: dict[str, Any] = {"mlp": MLP(widths=[64]), "cnn": CNN(width=8, hidden=32)}

Solve = Callable[[float, int], tuple[float, int]]
"""From tolerance and seed to the value and the number of products."""


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    for name in MODELS:
        report(name, curvature(name), repeats)


def report(name: str, operator: CurvatureOperator, repeats: int) -> None:
    exact = by_eigsh(operator, 20)(1e-10, 0)[0]
    solvers: dict[str, Solve] = {"ours": ours(operator)} | {f"eigsh ncv {n}": by_eigsh(operator, n) for n in (20, 8)}
    if importlib.util.find_spec("pyhessian"):
        solvers["PyHessian"] = by_pyhessian(operator)
        runs = [solvers["PyHessian"](1e-3, seed) for seed in range(3)]
        off, count = (statistics.mean(part) for part in ([abs(v / exact - 1) for v, _ in runs], [n for _, n in runs]))
        print(f"eigen {name}   PyHessian as it comes: relative error {off:.0e} after {count:.1f} products")
    reached: dict[str, tuple[float, dict[str, float]]] = {}
    for error in ERRORS:
        best = {key: [first(solve, exact, error, seed) for seed in range(3)] for key, solve in solvers.items()}
        counts = ", ".join(f"{key} {statistics.mean(n for _, n in runs):.1f}" for key, runs in best.items())
        print(f"eigen {name}   {operator.size} weights, relative error {error:.0e}: products {counts}")
        for rival, runs in best.items():
            if all(math.isfinite(products) for _, products in runs):
                reached[rival] = error, {key: best[key][0][0] for key in ("ours", rival)}
    for rival, (error, at) in list(reached.items())[1:]:
        ratio = compare(
            lambda at=at: ours(operator)(at["ours"], 0), lambda k=rival, at=at: solvers[k](at[k], 0), repeats
        )
        print(f"eigen {name}   relative error {error:.0e}, over {rival}: {ratio}")


def first(solve: Solve, exact: float, error: float, seed: int) -> tuple[float, float]:
    """The loosest tolerance that is good enough, and its products; NaN of them where none is."""
    for tolerance in TOLERANCES:
        value, products = solve(tolerance, seed)
        if abs(value - exact) <= error * abs(exact):
            return tolerance, products
    return TOLERANCES[-1], math.nan


def ours(operator: CurvatureOperator) -> Solve:
    def solve(tolerance: float, seed: int) -> tuple[float, int]:
        found = lanczos(operator, operator.like, torch.Generator().manual_seed(seed), tolerance=tolerance)
        return float(found.values[0]), found.products

    return solve


def by_eigsh(operator: CurvatureOperator, ncv: int) -> Solve:
    def solve(tolerance: float, seed: int) -> tuple[float, int]:
        count = 0

        def product(vector: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return operator(torch.from_numpy(vector.reshape(-1).copy())).numpy()

        matrix = LinearOperator((operator.size, operator.size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(operator.size)
        values = eigsh(matrix, 1, which="LA", ncv=ncv, tol=tolerance, v0=start, return_eigenvectors=False)
        return float(values[0]), count

    return solve


def by_pyhessian(operator: CurvatureOperator) -> Solve:
    """Its own class on the same network, batch and loss, in double precision; products are counted as it asks for them.

    It computes the gradient's graph once and keeps it, where ours reads the batch again for every product.
    """
    # The package hides this module behind the class of the same name.
    theirs = importlib.import_module("pyhessian.hessian")
    [batch] = operator.batches

    def solve(tolerance: float, seed: int) -> tuple[float, int]:
        count, product = 0, theirs.hessian_vector_product

        def counted(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            return product(*arguments)

        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        theirs.hessian_vector_product = counted
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it keeps a graph in .grad, of which torch warns
                torch.manual_seed(seed)
                operator.model.zero_grad()
                found = theirs.hessian(operator.model, F.cross_entropy, (batch.inputs, batch.targets), cuda=False)
                values, _ = found.eigenvalues(maxIter=2000, tol=tolerance)
        finally:
            theirs.hessian_vector_product = product
            torch.set_default_dtype(before)
            operator.model.zero_grad()
        return float(values[0]), count

    return solve


def curvature(name: str) -> CurvatureOperator:
    data = FashionMNIST(train=1000)()
    recipe = TrainedRecipe(MODELS[name], Training(epochs=3), data)
    model = train_model(recipe, data, data.train, 0).double().eval()
    batch = data.batch(data.train[:200])
    return hessian(_loss, model, differentiable(model), [batch._replace(inputs=batch.inputs.double())])


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.inputs), batch.targets)


if __name__ == "__main__":
    main()
