"""Default data for the checks of tasks and models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from expunge.core.data import Data


def candidates(data: Data | None) -> list[Data]:
    """The caller's data; by default handwritten digits and Python's reference texts."""
    return [_digits(), _texts()] if data is None else [data]


def with_sets() -> Iterator[Data]:
    """Data that say what to forget, for tasks that refuse the others."""
    yield _scenes()
    texts = _texts()
    yield replace(texts, train=torch.arange(180), forget=torch.arange(20), holdout=torch.arange(180, 200))
    yield _people()


def images() -> Data:
    """Small scenes, for models that reconstruct them."""
    from expunge.objectives.reconstruction import Reconstruction

    return _scenes().judged_by(Reconstruction())


def _digits() -> Data:
    from expunge.data.digits import Digits

    return Digits()()


def _texts() -> Data:
    from expunge.data.python_docs import PythonDocs

    return PythonDocs(train=200, test=20)()


def _people() -> Data:
    from expunge.data.people import People

    return People(people=20, public=10, test=10, vocabulary=300)()


def _scenes() -> Data:
    from expunge.data.tetrominoes import Tetrominoes

    return Tetrominoes(train=60, test=20, cells=6, pixels=3)()
