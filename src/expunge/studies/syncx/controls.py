"""Two claims of `syncx` that its preset `cpu` has no time for: the law of the initial phases, and gray scenes.

    expunge study expunge.studies.syncx.controls:ControlsStudy --preset cpu

Sizes, seeds, scenes and training are those of `syncx` at `cpu`. So are the claims with their rules, which were fixed
before any run of `syncx`. The net with von Mises phases is trained again; it is the same net, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Figure
from expunge.studies.syncx.study import FOREGROUND, LAWS, SyncxStudy
from expunge.study.read import array
from expunge.study.study import Preset, Work

LAW, GRAY = "von_mises_is_best", "grays_are_bound"


@dataclass(frozen=True)
class ControlsStudy(SyncxStudy):
    """SynCx under other laws of initial phases, and on gray scenes."""

    claims: ClassVar[tuple[Claim, ...]] = tuple(claim for claim in SyncxStudy.claims if claim.id in (LAW, GRAY))
    presets: ClassVar[Mapping[str, Preset]] = {name: SyncxStudy.presets[name] for name in ("quick", "cpu", "paper")}

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Train SynCx under each law and both nets on gray scenes, for one seed."""
        scenes = self._scenes(seed)
        kinds = {"von Mises": self.plain} | {str(law): replace(self.plain, phases=law) for law in LAWS}
        trained = {law: self._trained("syncx", kind, scenes, self.steps, seed) for law, kind in kinds.items()}
        index: dict[str, float] = {law: reading.ari[FOREGROUND] for law, (_, reading, _) in trained.items()}
        weights = int(trained["von Mises"][2]["weights"])
        beyond = {str(law): index["von Mises"] - index[law] for law in LAWS}
        return {**array(LAW, beyond), **self._grays(seed, weights), "index": index}

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """None: each claim is one difference of indices."""
        return []
