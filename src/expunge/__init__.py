"""Remove what a trained neural network has learned, and show whether it is really gone.

import expunge

case = expunge.case(model, forget=..., retain=..., test=..., recipe=expunge.recipe(build, train))
done = expunge.unlearn(case, "random_relabel")
result = expunge.audit(done, case)
expunge.report(result, "report.html")
"""

from typing import TYPE_CHECKING, Any

from expunge.base.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.api import (
        Demonstrations,
        Diagnosis,
        Result,
        audit,
        case,
        diagnose,
        objective,
        recipe,
        report,
        select_demonstrations,
        unlearn,
    )

__all__ = [
    "Demonstrations",
    "Diagnosis",
    "ExpungeError",
    "Result",
    "audit",
    "case",
    "diagnose",
    "objective",
    "recipe",
    "report",
    "select_demonstrations",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    # Loaded when first used: `expunge --help` and everything that reads old results do without torch.
    if name in __all__:  # except ExpungeError, which is here already
        import expunge.api

        return getattr(expunge.api, name)
    raise AttributeError(f"module 'expunge' has no attribute {name!r}")
