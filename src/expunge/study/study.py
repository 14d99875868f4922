"""A study: claims as data, and a measurement that gives one number or array per claim and seed.

    prepare(seeds, work)          the part that all seeds share: hyper-parameters from other seeds, pipeline runs
    measure(seed, work, basis)    {claim's id: number}; other names are for figures only

The library runs the seeds, stores their results, and decides. A study is a configuration like every part: its fields
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
from expunge.reporting.names import PRESETS
from expunge.reporting.page import write_report
from expunge.reporting.progress import Progress
from expunge.reporting.record import Run


@dataclass(frozen=True)
class Preset:
    """A scale at which a study runs."""

    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the study that differ from their defaults."""
    lacks: str = ""
    """What the preset needs and this machine does not have; such a preset is listed, but refused."""


@dataclass(frozen=True)
class Work:
    """Folder, name and workers of a study's run."""

    out: Path
    """Folder of all studies; outputs of stages are shared between presets in `out/cache`."""
    name: str
    """Study and preset, such as `dormant-cpu`."""
    workers: int = 1
    progress: Progress | None = None
    pages: bool = True
    """Whether each run gets a page; not in the preset `quick`, whose runs nobody reads."""
    on: str | None = None
    """Name of the executor; by default this process, or processes with several workers."""

    @property
    def folder(self) -> Path:
        """The folder of the results of this study and preset."""
        return self.out / self.name

    def run(self, table: Mapping[str, Any], name: str) -> Run:
        """Run a spec through the pipeline, or complete an earlier run.

        Args:
            table: The spec as plain data, without its name.
            name: Name of the run within the study; its record is `out/<study>-<preset>-<name>`.

        Returns:
            The record, with its page beside it if `pages`.
        """
        folder = self.out / f"{self.name}-{name}"
        try:
            spec = parse({"name": folder.name, **table}, Path.cwd())
            done = run(spec, self.out, workers=self.workers, on=self.on, progress=self.progress)
        except SpecError as error:
            # The error's own remedy is to change the run's name, but a user cannot: it comes from the study.
            if error.where != str(folder):
                raise
            remedy = f"delete {folder}; what it computed stays in {self.out / 'cache'}"
            raise SpecError(error.finding, where=error.where, allowed=error.allowed, remedy=remedy) from None
        if self.pages:
            write_report(done.folder)
        return self.record(name)

    def spent(self) -> float:
        """Seconds of computing for all runs of the study; a stage that two runs share counts once."""
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
    """The claims, declared before anything is measured."""
    presets: ClassVar[Mapping[str, Preset]]
    """By name; one for each of `PRESETS`."""
    paper: ClassVar[str] = ""
    """Name and year of the source, for tables."""
    side_by_side: ClassVar[bool] = True
    """Whether seeds run in separate processes; `False` if `prepare` does the expensive work."""

    def prepare(self, seeds: Sequence[int], work: Work) -> Mapping[str, Any]:
        """The part that all seeds share; it must be able to continue after an interruption.

        Returns:
            Plain data for `measure`; the stored results depend on it.
        """
        return {}

    @abstractmethod
    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """The results of one seed: a number or an array by each claim's id, and data for figures by other names.

        Leave out a claim that this scale does not measure; it is then inconclusive.
        """

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """The figures of the seeds' results; none by default."""
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
