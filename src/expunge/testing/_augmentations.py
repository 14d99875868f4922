"""The contract of an augmentation: inputs of the same form, changed by the generator alone."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.base.errors import SpecError
from expunge.core.contracts import Augmentation
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._rules import check_settings, randomness, reasons
from expunge.testing._state import equal


def check_augmentation(augmentation: Augmentation, inputs: Tensor | None = None) -> None:
    """Hold an augmentation against its contract, on images and on vectors, as far as it does not refuse them.

    The result has the inputs' shape and dtype and is finite; equal generators give equal results; the inputs and the
    global random state stay untouched.

    Args:
        augmentation: The augmentation.
        inputs: Inputs `[b, ...]` that it is made for; by default images `[4, 3, 6, 8]` and vectors `[4, 6]`.

    Raises:
        ContractError: The first contract that is broken.
    """
    check_settings(augmentation)
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3, 6, 8), (4, 6))
    tried = [torch.rand(shape, generator=generator) for shape in shapes] if inputs is None else [inputs]
    refusals = []
    for batch in tried:
        try:
            _check_on(augmentation, batch, failing(augmentation, f"inputs of shape {list(batch.shape)}"))
        except SpecError as error:
            refusals.append(error)
    if len(refusals) == len(tried):
        remedy = "pass inputs= that it is made for"
        raise ContractError(augmentation, "some inputs fit", str(refusals[0]), remedy) from refusals[0]


def _check_on(augmentation: Augmentation, inputs: Tensor, fail: Fail) -> None:
    given = inputs.clone()
    results = []
    for start in (1, 2):
        generator = torch.Generator().manual_seed(5)
        with randomness(start, fail), reasons(fail, "refuse with a SpecError what cannot be changed", SpecError):
            results.append(augmentation(inputs, generator))
        if not equal(inputs, given):
            raise fail("the inputs are unchanged", "they changed", "write to a clone of them")
    first, second = results
    if not isinstance(first, Tensor) or first.shape != given.shape or first.dtype != given.dtype:
        found = f"{first.dtype} {list(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise fail("the form stays", f"it returns {found}", f"return {given.dtype} {list(given.shape)}")
    if not first.isfinite().all():
        raise fail("finite", "a value is not finite", "check what the settings allow")
    if not equal(first, second):
        raise fail("deterministic", "equal generators give different results", "draw from the generator alone")
