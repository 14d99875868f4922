"""Factors and eigenvalues equal kronfluence's; skipped where it is not installed.

pip install --no-deps kronfluence opt-einsum einops einconv
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expunge.numerics.eigenbasis import Eigenbasis, ekfac_eigenvalues
from expunge.numerics.kronecker import collect

COMMAND = "pip install --no-deps kronfluence opt-einsum einops einconv"

if importlib.util.find_spec("kronfluence"):
    # For convolutions it needs einconv and all of einops; for linear layers one function is enough.
    stubs = {"einconv": {}, "einconv.utils": {"get_conv_paddings": None}}
    stubs["einops"] = {"reduce": None, "rearrange": lambda tensor, pattern: tensor.flatten(0, -2)}
    lacking = {name for name in ("einconv", "einops") if importlib.util.find_spec(name) is None}
    for name, content in stubs.items():
        if name.partition(".")[0] in lacking:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(content)

pytest.importorskip("kronfluence", reason=COMMAND, exc_type=ImportError)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none").sum(1)


@pytest.mark.filterwarnings("ignore")
def test_factors_and_eigenvalues_are_those_of_kronfluence(tmp_path: Path) -> None:
    from kronfluence import Analyzer, FactorArguments, Task, prepare_model

    class Texts(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return losses(model, batch).sum()

        def compute_measurement(self, batch, model):
            return losses(model, batch).sum()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 4, bias=False)).double().eval()
    inputs, targets = torch.randn(12, 3, 5).double(), torch.randint(0, 4, (12, 3))
    layers = {name: model.get_submodule(name) for name in ("0", "2")}
    ours = collect(model, losses, [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])], layers)

    arguments = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=True,
        **{f"{name}_dtype": torch.float64 for name in ("activation_covariance", "gradient_covariance", "lambda")},
        **{"per_sample_gradient_dtype": torch.float64},
    )
    prepared = prepare_model(model, Texts())
    analyzer = Analyzer("test", prepared, Texts(), cpu=True, output_dir=str(tmp_path), disable_tqdm=True)
    dataset = torch.utils.data.TensorDataset(inputs, targets)
    analyzer.fit_all_factors("all", dataset, per_device_batch_size=4, factor_args=arguments)
    covariances, eigen, lambdas = (
        getattr(analyzer, f"load_{what}")("all")
        for what in ("covariance_matrices", "eigendecomposition", "lambda_matrices")
    )
    bases = {}
    for path, factors in ours.layers.items():
        for name, factor in (("activation", factors.inputs), ("gradient", factors.gradients)):
            theirs = covariances[f"{name}_covariance"][path] / covariances[f"num_{name}_covariance_processed"][path]
            torch.testing.assert_close(factor, theirs.double())
        left, right = (eigen[f"{name}_eigenvectors"][path].double() for name in ("gradient", "activation"))
        bases[path] = Eigenbasis(left, left[0], right, right[0])
    # Its gradients are those of examples, in the basis that it found.
    values = ekfac_eigenvalues(model, losses, [(inputs, targets)], layers, bases, of="examples")
    for path, found in values.items():
        theirs = lambdas["lambda_matrix"][path] / lambdas["num_lambda_processed"][path]
        torch.testing.assert_close(found, theirs.double())
