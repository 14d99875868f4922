"""The notebook interface for a model of your own: `case`, `unlearn`, `audit` and `report`, one line each.

    case   = expunge.case(model, forget=..., retain=..., test=..., recipe=expunge.recipe(build, train))
    done   = expunge.unlearn(case, "scrub")
    result = expunge.audit(done, case)
    expunge.report(result, "report.html")

`print(expunge.diagnose(case))` examines the case before unlearning. The verdict is about this one model. With a recipe,
the model is compared with retrained references. Without one it is compared with held-out data, and the verdict can only
be an accusation or `inconclusive`.
"""

from expunge.api.audit import Result, audit, report
from expunge.api.case import case, unlearn
from expunge.api.demonstrations import Demonstrations, select_demonstrations
from expunge.api.diagnosis import Diagnosis, diagnose
from expunge.api.objective import objective
from expunge.api.recipe import FunctionRecipe, recipe

__all__ = [
    "Demonstrations",
    "Diagnosis",
    "FunctionRecipe",
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
