"""Make an objective, which says how your model's outputs are judged, by its name."""

from __future__ import annotations

from typing import Any

from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.core.objective import Objective


def objective(name: str, **settings: Any) -> Objective:
    """Make an objective for `case(objective=...)`.

    Args:
        name: `classification`, `language_modelling`, `multilabel`, `regression`, `segmentation`, `reconstruction`, or
            your own class as `module:Class`.
        **settings: Settings of the objective, such as `ignore=255` or `output="mask"`.

    Returns:
        The objective.

    Raises:
        SpecError: The name or a setting is unknown.
    """
    part = registry.build("objective", name, settings, where="objective")
    if not isinstance(part, Objective):
        raise SpecError(f"{name!r} is not an objective", where="objective", allowed="a class that extends Objective")
    return part
