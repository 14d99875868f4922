"""What your model is judged by, by name."""

from __future__ import annotations

from typing import Any

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.core.objective import Objective


def objective(name: str, **settings: Any) -> Objective:
    """An objective for `case(objective=...)`.

    Args:
        name: `classification`, `language_modelling`, `multilabel`, `regression`, `segmentation`, `reconstruction`, or
            `module:Class` of your own.
        **settings: Its settings, such as `ignore=255` or `output="mask"`.

    Returns:
        The objective.

    Raises:
        SpecError: An unknown name or setting.
    """
    made = registry.build("objective", name, settings, where="objective")
    if not isinstance(made, Objective):
        raise SpecError(f"{name!r} is no objective", where="objective", allowed="a class that extends Objective")
    return made
