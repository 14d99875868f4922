"""The contract of a data set: the same values each time, plain types, and separate training and test examples."""

from __future__ import annotations

import torch

from expunge.core.contracts import Source
from expunge.core.data import Data
from expunge.testing._error import Fail, failing
from expunge.testing._rules import check_settings, randomness
from expunge.testing._state import contents


def check_data(source: Source) -> None:
    """Check a data set against its contract.

    Loading it twice gives the same values and does not change the global random state. It has training and test
    examples, without overlap. Inputs are float32 numbers or int64 tokens; targets are int64. Each label of the test set
    occurs in the training set. C-scores, if there are any, are shares. The settings can be stored and read again.

    Raises:
        ContractError: The first broken contract.
    """
    check_settings(source)
    fail = failing(source)
    with randomness(1, fail):
        data = source()
    with randomness(2, fail):
        again = source()
    if not isinstance(data, Data):
        raise fail("returns Data", f"returned {type(data).__name__}", "return an expunge.core.data.Data")
    if contents(data) != contents(again):
        raise fail("deterministic", "loading twice gives other values", "fix the order and draw nothing")
    _check_values(data, fail)


def _check_values(data: Data, fail: Fail) -> None:
    if not len(data.train) or not len(data.test) or torch.isin(data.train, data.test).any():
        raise fail("training and test examples", "some are both, or there are none", "split once, by id")
    allowed = (torch.float32,) if data.inputs.is_floating_point() else (torch.int64,)
    if data.inputs.dtype not in allowed or data.targets.dtype != torch.int64:
        raise fail(
            "types",
            f"inputs are {data.inputs.dtype}, targets {data.targets.dtype}",
            "use float32 for numbers and int64 for tokens and targets",
        )
    if data.has_classes and not torch.isin(data.targets[data.test], data.targets[data.train]).all():
        raise fail("every class is trained on", "a test label is not among those trained on", "shuffle, then split")
    if data.cscore is not None:
        scores = data.cscore[data.train]
        if not ((scores >= 0) & (scores <= 1)).all():
            raise fail("C-scores are shares", "some are not in [0, 1]", "give one to each training example, or none")
