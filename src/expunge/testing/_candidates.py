"""Default data for the checks of tasks and models."""

from __future__ import annotations

from expunge.core.data import Data


def candidates(data: Data | None) -> list[Data]:
    """The caller's data; by default handwritten digits and Python's reference texts."""
    return [_digits(), _texts()] if data is None else [data]


def _digits() -> Data:
    from expunge.data.digits import Digits

    return Digits()()


def _texts() -> Data:
    from expunge.data.python_docs import PythonDocs

    return PythonDocs(train=200, test=20)()
