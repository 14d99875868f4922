"""Shared by the diagnostics of per-example curvature: four settings, and the sample that their budget affords."""

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
    """Base of the diagnostics that measure the curvature of single examples of both sets."""

    retain: Count = 64
    """Retain examples to measure; fewer if the budget does not allow as many."""
    forget: Count = 64
    """Forget examples to measure; fewer if the budget does not allow as many."""
    rows: Count = 9
    """Most columns per example. Up to this many, classes - 1 columns are exact; beyond, this many labels are drawn."""
    epochs: Positive = 2.0
    """Largest cost of this diagnostic, in passes over the training set."""

    def looked_at(self, case: Case, generator: torch.Generator, more: int = 0) -> tuple[int, Sample]:
        """Columns per example, and the sample that the budget affords with `more` extra columns per example."""
        rows = rows_of(case.problem, self.rows)
        wanted = (self.retain, self.forget)
        return rows, sampled_within(case, wanted, rows + more, self.epochs, generator)
