"""A study: claims as data, and a measurement that gives one number or array per claim and seed.

    prepare(seeds, work)          what all seeds share: hyper-parameters chosen on other seeds, a run of the pipeline
    measure(seed, work, basis)    {claim's id: number}; other names feed figures only

The library runs the seeds, stores what they gave, and decides. A study is a configuration like every part: its fields
are its scale, and a preset is a set of values for them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from expunge.base.errors import MissingError, SpecError, unknown
from expunge.base.manifest import read_manifest
from expunge.base.part import Part
from expunge.base.spec import parse
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Figure
from expunge.pipeline.run import run
from expunge.reporting.page import write_report
from expunge.reporting.progress import Progress
from expunge.reporting.record import Run

PRESETS = ("quick", "cpu", "long", "paper")
"""In the order of what they cost: 20 s, 30 min and 6 h on two idle cores, and the paper's own scale."""


@dataclass(frozen=True)
class Preset:
    """A scale at which a study runs."""

    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the study that differ from their defaults."""
    lacks: str = ""
    """What this machine does not have for it; such a preset is written out, and refused."""


@dataclass(frozen=True)
class Work:
    """Where a study works, and with what."""

    out: Path
    """Folder of all studies; outputs of stages are shared between presets in `out/cache`."""
    name: str
    """Study and preset, such as `dormant-cpu`."""
    workers: int = 1
    progress: Progress | None = None

    @property
    def folder(self) -> Path:
        """What this study and preset leaves behind."""
        return self.out / self.name

    def run(self, table: Mapping[str, Any], name: str) -> Run:
        """Run a spec through the pipeline, or finish what is missing of it.

        Args:
            table: The spec as plain data, without its name.
            name: Of the run within the study; its record is `out/<study>-<preset>-<name>`.

        Returns:
            The record, with its report beside it.
        """
        folder = self.out / f"{self.name}-{name}"
        try:
            spec = parse({"name": folder.name, **table}, Path.cwd())
            done = run(spec, self.out, workers=self.workers, progress=self.progress)
        except SpecError as error:
            # The run's name comes from the study: the user cannot change it, as the error's own remedy asks.
            if error.where != str(folder):
                raise
            remedy = f"delete {folder}; what it computed stays in {self.out / 'cache'}"
            raise SpecError(error.finding, where=error.where, allowed=error.allowed, remedy=remedy) from None
        write_report(done.folder)
        return self.record(name)

    def spent(self) -> float:
        """Seconds of computing behind all runs of the study; a stage that two runs share counts once."""
        stages: dict[str, float] = {}
        for path in self.out.glob(f"{self.name}-*/manifest.json"):
            stages |= {stage.key: stage.seconds for stage in read_manifest(path.parent).stages if stage.key}
        return sum(stages.values())

    def record(self, name: str) -> Run:
        """A run of the study that has finished."""
        return Run.open(self.out / f"{self.name}-{name}")


@dataclass(frozen=True)
class Study(Part):
    """A paper's claims, measured."""

    claims: ClassVar[tuple[Claim, ...]]
    """Written before anything is measured."""
    presets: ClassVar[Mapping[str, Preset]]
    """By name; one of each of `PRESETS`."""
    paper: ClassVar[str] = ""
    """Name and year of the source, for tables."""
    side_by_side: ClassVar[bool] = True
    """Whether seeds are worth processes of their own; not where `prepare` does what takes time."""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """What all seeds share; resumable by itself.

        Returns:
            Plain data that `measure` is given, and that its stored results depend on.
        """
        return {}

    @abstractmethod
    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """What one seed gives: a number or an array by each claim's id, and what figures need by other names.

        A claim that this scale does not measure is left out, and is inconclusive then.
        """

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """What to draw from what the seeds gave."""
        return []


def at_preset(study: type[Study], preset: str) -> tuple[Study, Preset]:
    """The study at a preset's scale.

    Raises:
        SpecError: There is no such preset.
        MissingError: The preset needs what this machine does not have.
    """
    if preset not in study.presets:
        raise unknown("preset", preset, study.presets, where="--preset")
    scale = study.presets[preset]
    if scale.lacks:
        remedy = f"choose another preset: {', '.join(p for p in PRESETS if p != preset)}"
        raise MissingError(f"needs {scale.lacks}", where=f"--preset {preset}", remedy=remedy)
    return study.from_table(dict(scale.settings), where=f"preset {preset}"), scale
