"""Look at a case before anything is unlearned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.base.errors import ExpungeError
from expunge.base.seeds import derive
from expunge.core.case import Case
from expunge.evidence.estimate import Estimate
from expunge.own.parts import expect, parts_of
from expunge.probes._plan import default_set
from expunge.reporting.listing import estimates


@dataclass(frozen=True)
class Diagnosis:
    """What probes said of a case; printed, it reads as `expunge diagnose` does."""

    found: Mapping[str, Mapping[str, Estimate]]
    """Probe -> estimates by what they are of."""
    told: Mapping[str, str]
    """Probe -> what its estimates mean, in a sentence or two."""
    left_out: Mapping[str, str]
    """Probe that this case is not for -> why; only where no probe was named."""

    def __str__(self) -> str:
        lines = []
        for label, several in self.found.items():
            lines += [label, estimates({what: one.as_json() for what, one in several.items()}), self.told[label]]
        lines += [f"{label}, left out: {why}" for label, why in self.left_out.items()]
        return "\n".join(line for line in lines if line)


def diagnose(case: Case, probes: Sequence[str | Mapping[str, Any]] | None = None) -> Diagnosis:
    """Run probes on a case; nothing of it is changed.

    Args:
        case: What `case` returned.
        probes: Names, or tables as in a spec: `{"name": "hardness", "mix": 0.5}`, each at most `epochs` of its settings
            in passes over the training set. By default all that there are, for two passes together, or a thousand
            gradients each where that is more; one that the case is not for is left out then, and named.

    Returns:
        Estimates and sentences by probe.

    Raises:
        ExpungeError: An unknown name or setting, or a named probe that cannot look at this case.
    """
    expect(case, Case, "case", "what expunge.case returned")
    chosen = default_set(case.problem.data)
    tables = [{"name": name, **has} for name, has in chosen.settings.items()] if probes is None else probes
    found, told, left_out = {}, {}, dict(chosen.left_out) if probes is None else {}
    for label, probe in parts_of("probe", tables).items():
        try:
            found[label] = probe(case, derive(case.seed, "probe", label))
        except ExpungeError as error:
            if probes is not None:
                raise error.at(f"probe {label!r}") from None
            left_out[label] = str(error)
            continue
        told[label] = probe.told(found[label])
    return Diagnosis(found, told, left_out)
