"""Look at a case before anything is unlearned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.api.parts import expect, parts_of
from expunge.base.errors import ExpungeError
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.evidence.estimate import Estimate
from expunge.pipeline.default_diagnostics import default_set
from expunge.reporting.listing import estimates


@dataclass(frozen=True)
class Diagnosis:
    """What diagnostics said of a case; printed, it reads as `expunge diagnose` does."""

    found: Mapping[str, Mapping[str, Estimate]]
    """Diagnostic -> estimates by what they are of."""
    summary: Mapping[str, str]
    """Diagnostic -> what its estimates mean, in a sentence or two."""
    left_out: Mapping[str, str]
    """Diagnostic that this case is not for -> why; only where no diagnostic was named."""

    def __str__(self) -> str:
        lines = []
        for label, several in self.found.items():
            lines += [label, estimates({what: one.as_json() for what, one in several.items()}), self.summary[label]]
        lines += [f"{label}, left out: {why}" for label, why in self.left_out.items()]
        return "\n".join(line for line in lines if line)


def diagnose(case: Case, diagnostics: Sequence[str | Mapping[str, Any]] | None = None) -> Diagnosis:
    """Run diagnostics on a case; nothing of it is changed.

    Args:
        case: What `case` returned.
        diagnostics: Names, or tables as in a spec: `{"name": "hardness", "ascent_weight": 0.5}`. The setting `epochs`
            of each bounds its cost, in passes over the training set. By default all diagnostics run. Together they
            take at most two passes, or a thousand gradients each where that is more; a diagnostic that does not fit
            the case is then left out and named.

    Returns:
        Estimates and sentences by diagnostic.

    Raises:
        ExpungeError: An unknown name or setting, or a named diagnostic that cannot look at this case.
    """
    expect(case, Case, "case", "what expunge.case returned")
    chosen = default_set(case.problem.data)
    tables = [{"name": name, **has} for name, has in chosen.settings.items()] if diagnostics is None else diagnostics
    found, summary, left_out = {}, {}, dict(chosen.left_out) if diagnostics is None else {}
    for label, diagnostic in parts_of("diagnostic", tables).items():
        try:
            found[label] = diagnostic(case, derive(case.seed, "probe", label))
        except ExpungeError as error:
            if diagnostics is not None:
                raise error.at(f"diagnostic {label!r}") from None
            left_out[label] = str(error)
            continue
        summary[label] = diagnostic.summary(found[label])
    return Diagnosis(found, summary, left_out)
