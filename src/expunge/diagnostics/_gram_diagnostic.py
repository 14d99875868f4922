"""What diagnostics of the curvature of single examples have in common: four settings, and what their budget affords."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from expunge.base.part import Count, Positive
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.diagnostics._rows import rows_of, sampled_within
from expunge.diagnostics._sample import Sample


@dataclass(frozen=True)
class GramDiagnostic(Diagnostic):
    """Base of the diagnostics that look at the curvature of single examples of both sets."""

    retain: Count = 64
    """Retain examples looked at, fewer where the budget is short."""
    forget: Count = 64
    """Forget examples looked at, likewise."""
    rows: Count = 9
    """Columns per example: classes - 1 are exact; where they would be more, this many labels are drawn instead."""
    epochs: Positive = 2.0
    """Most that this may cost, in passes over the training set."""

    def looked_at(self, case: Case, generator: torch.Generator, more: int = 0) -> tuple[int, Sample]:
        """Columns per example, and the sample that the budget affords with so many `more` of each."""
        rows = rows_of(case.problem, self.rows)
        wanted = (self.retain, self.forget)
        return rows, sampled_within(case, wanted, rows + more, self.epochs, generator)
