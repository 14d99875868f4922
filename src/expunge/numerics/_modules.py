"""Checks that a module's losses are a fixed function of the weights, separate for each example."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from expunge.base.errors import SpecError
from expunge.numerics.real import real_type


def differentiable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take a gradient, each once even if it is tied.

    Raises:
        SpecError: No parameter takes a gradient.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise SpecError(
            "no parameter takes a gradient",
            where=f"model ({type(model).__name__})",
            remedy="set requires_grad on the parameters to train",
        )
    return parameters


def require_parameters(parameters: Sequence[Tensor]) -> None:
    """Refuse parameters that cannot form one flat vector.

    Raises:
        SpecError: There are no parameters, one takes no gradient, or they differ in dtype or device.
    """
    frozen = [index for index, parameter in enumerate(parameters) if not parameter.requires_grad]
    if not parameters or frozen:
        finding = f"number {frozen[0]} takes no gradient" if parameters else "there is none"
        raise SpecError(finding, where="parameters", remedy="take those of numerics.linops.differentiable(model)")
    kinds = {(str(real_type(parameter.dtype)), str(parameter.device)) for parameter in parameters}
    if len(kinds) > 1 or real_type(parameters[0].dtype) not in (torch.float32, torch.float64):
        finding = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds))
        allowed = "all float32 (complex64) or all float64 (complex128), on one device"
        raise SpecError(finding, where="parameters", allowed=allowed)


def require_fixed(model: nn.Module) -> None:
    """Refuse a module whose loss on an example depends on the rest of the batch or on random numbers.

    Raises:
        SpecError: Batch norm takes its statistics from the batch, or dropout is on; names the module's path.
    """
    for path, module in model.named_modules():
        where = f"{path or 'model'} ({type(module).__name__})"
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            training = "is in training mode: an example's loss depends on the rest of its batch"
            finding = training if module.training else "has no running statistics"
            raise SpecError(finding, where=where, remedy="call model.eval() and give batch norm running statistics")
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise SpecError("is in training mode: the loss is random", where=where, remedy="call model.eval()")
