"""The notebook path, on a model of your own: `case`, `unlearn`, `audit`, `report`, a line each.

    case   = expunge.case(model, forget=..., retain=..., test=..., recipe=expunge.recipe(build, train))
    done   = expunge.unlearn(case, "scrub")
    result = expunge.audit(done, case)
    expunge.report(result, "report.html")

`print(expunge.diagnose(case))` looks first. The verdict is about this one model. With a recipe it is held against
retrained references; without one, held-out data stands in their place and the verdict can only be an accusation or
`inconclusive`.
"""

from expunge.api.audit import Result, audit, report
from expunge.api.case import FunctionRecipe, case, recipe, unlearn
from expunge.api.diagnosis import Diagnosis, diagnose
from expunge.api.objective import objective

__all__ = [
    "Diagnosis",
    "FunctionRecipe",
    "Result",
    "audit",
    "case",
    "diagnose",
    "objective",
    "recipe",
    "report",
    "unlearn",
]
