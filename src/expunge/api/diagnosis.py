"""Run diagnostics on a case before anything is unlearned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.api.parts import expect, parts_of
from expunge.base.errors import ExpungeError
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.evidence.estimate import Estimate
from expunge.pipeline.default_diagnostics import default_set
from expunge.reporting.listing import diagnosed


@dataclass(frozen=True)
class Diagnosis:
    """The estimates of diagnostics for a case. Its printed form is that of `expunge diagnose`."""

    estimates: Mapping[str, Mapping[str, Estimate]]
    """Diagnostic -> estimates by the name of the quantity."""
    summary: Mapping[str, str]
    """Diagnostic -> what its estimates mean, in a sentence or two."""
    left_out: Mapping[str, str]
    """Diagnostic that does not suit this case -> the reason. Empty if the call named its diagnostics."""
    proposals: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Diagnostic -> the methods that it recommends, as tables of a spec; only those that recommend any."""

    def __repr__(self) -> str:
        return f"Diagnosis({', '.join(self.estimates)}; left out: {', '.join(self.left_out) or 'none'})"

    def __str__(self) -> str:
        texts = []
        for label in sorted(self.estimates, key=lambda label: not self.proposals.get(label)):
            table = {quantity: estimate.as_json() for quantity, estimate in self.estimates[label].items()}
            texts.append(diagnosed(label, table, self.summary[label], self.proposals.get(label, ())))
        texts += [f"{label}, left out: {reason}" for label, reason in self.left_out.items()]
        return "\n\n".join(texts)


def diagnose(case: Case, diagnostics: Sequence[str | Mapping[str, Any]] | None = None) -> Diagnosis:
    """Run diagnostics on a case. The case is not changed.

    Args:
        case: The result of `expunge.case`.
        diagnostics: Names, or tables as in a spec: `{"name": "hardness", "ascent_weight": 0.5}`. The setting `epochs`
            of each bounds its cost, in passes over the training set. By default all diagnostics run. Together they
            take at most two passes, or a thousand gradients each if that is more. A diagnostic that does not suit the
            case is then left out, and the result names it.

    Returns:
        Estimates and sentences by diagnostic.

    Raises:
        ExpungeError: A name or setting is unknown, or a named diagnostic does not suit this case.
    """
    expect(case, Case, "case", "what expunge.case returned")
    chosen = default_set(case.problem.data)
    default = [{"name": name, **settings} for name, settings in chosen.settings.items()]
    tables = default if diagnostics is None else diagnostics
    estimates, summary, left_out = {}, {}, dict(chosen.left_out) if diagnostics is None else {}
    proposals: dict[str, list[dict[str, Any]]] = {}
    for label, diagnostic in parts_of("diagnostic", tables).items():
        try:
            estimates[label] = diagnostic(case, derive(case.seed, "probe", label))
        except ExpungeError as error:
            if diagnostics is not None:
                raise error.at(f"diagnostic {label!r}") from None
            left_out[label] = str(error)
            continue
        summary[label] = diagnostic.summary(estimates[label])
        if proposal := diagnostic.proposal(estimates[label]):
            proposals[label] = proposal
    return Diagnosis(estimates, summary, left_out, proposals)
