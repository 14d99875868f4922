"""Continue training on the retain set; forgetting is only a side effect ("catastrophic forgetting", 2505.22310).

Cost: one gradient per retain example and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.core.job import Job
from expunge.methods._descent import Descent


@dataclass(frozen=True)
class Finetune(Descent):
    """Minimise cross-entropy on the retain set."""

    cite: ClassVar[str] = "siddiqui2025dormant"
    paper: ClassVar[str] = "catastrophic forgetting, 2025"
    effort: ClassVar[str] = "R E"

    @property
    def ascent(self) -> float | None:
        """0 with SGD, because there is no ascent; `None` with Adam, which scales the step of each weight."""
        return 0.0 if self.optimizer == "sgd" else None

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Descend on retain batches."""
        return self.descend_on_retain(student, job)
