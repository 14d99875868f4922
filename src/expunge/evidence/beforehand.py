"""Whether there is anything to forget, as known before any method runs: from the scores of originals and references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from expunge.evidence.comparison import RANGE, Design, over_held_out, over_method, over_model
from expunge.evidence.contrast import Contrast, alone
from expunge.evidence.intervals import Floats
from expunge.evidence.quantity import Quantity
from expunge.evidence.reasons import name_of, number

if TYPE_CHECKING:
    from expunge.evidence.table import Table

MODEL, FEWEST = "original", 3


def nothing_to_forget(table: Table) -> str:
    """A warning if originals know no more of the forget set than references do.

    Without references, they are compared with what they know of unseen examples.

    Args:
        table: Holds the scores of originals, and of references if there are any. Scores of other models are not read.

    Returns:
        One sentence; empty if at least one audit of knowledge has a range, or if none was measured.
    """
    quantities = [quantity for quantity in table.quantities(MODEL) if quantity.role == "knowledge"]
    design: Design = over_model if table.about_one_model else over_method
    against = "references"
    if any(quantity.reference_ids is not None for quantity in quantities):
        design, against = over_held_out, "unseen examples"
    if not quantities or any(_range(quantity, design).low > 0 for quantity in quantities):
        return ""
    shown = [quantity for quantity in quantities if quantity.required] or quantities
    values = "; ".join(
        f"{name_of(q)} is {number(_mean(q.original))} for the original and {number(_mean(q.reference))} for {against}"
        for q in shown
    )
    return (
        f"warning: no audit shows that the model knows the forget set: {values}. Without such a difference no model is "
        "`erased`, `dormant` or `incomplete`. Check that the forget set was in its training data, with the same "
        "labels or prompts" + (", or give a holdout that resembles it" if design is over_held_out else "")
    )


def _range(quantity: Quantity, design: Design) -> Contrast:
    """Original minus reference, as in verdicts; with the error over examples alone if there are too few seeds."""
    contrast = design(quantity, None, RANGE, 0.0)
    few = len(quantity.reference) < FEWEST
    return alone(contrast.mean, contrast.sampling, quantity.examples) if few else contrast


def _mean(per_seed: Sequence[Floats]) -> float:
    return float(np.mean([values.mean() for values in per_seed]))
