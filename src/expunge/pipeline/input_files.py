"""The files that a run reads, code included: whether they have changed since it was planned, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError, SpecError
from expunge.base.inputs import Signature, changed, input_digest, signature, signatures
from expunge.base.part import Part
from expunge.base.record import address
from expunge.core.hf_folder import files_of

UNCHANGED = "change no input file or code during a run, and run the same again; finished stages are kept"


@dataclass(frozen=True)
class InputFiles:
    """The input files and the user's code of a plan, as they were before any input file was read."""

    files: Mapping[str, Mapping[str, Path]]
    """Place in the spec, such as `data.path` -> files by name; a single file has the empty name."""
    before: Mapping[Path, Signature | None]
    """The signature of each file when the plan was made."""
    code: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Place in the spec -> files of the user's code; a function may import some of them only when it is called."""

    @classmethod
    def of(cls, parts: Sequence[tuple[str, Part]], weights: str | None, references: Sequence[Path] = ()) -> InputFiles:
        """The files and the code of these parts, the user's weights, and the user's references.

        Args:
            parts: Place in the spec, such as `data`, and the part.
            weights: Path of the user's weights, none if originals are trained.
            references: Files, or folders of transformers, of models that never saw the forget set.

        Raises:
            MissingError: A part's files are not on this machine.
            SpecError: A setting names a folder with too many files.
        """
        files = dict[str, Mapping[str, Path]]()
        for place, part in parts:
            try:
                files |= {f"{place}.{field}": named for field, named in part.input_files().items()}
            except SpecError as error:
                raise error.at(place) from None
        if weights is not None:
            files["model.weights"] = {"": Path(weights)}
        for i, path in enumerate(references):
            files[f"references[{i}]"] = files_of(path) if path.is_dir() else {"": path}
        code = {place: part.code_files() for place, part in parts}
        return cls(files, signatures(path for paths in _by_place(files, code).values() for path in paths), code)

    def refuse_changes(self) -> None:
        """Refuse to store what may have been computed from other contents than those that were planned.

        Raises:
            RunError: A file was changed, replaced, moved or deleted since the plan was made.
        """
        differing = changed(self.before)
        if differing:
            where = next(place for place, paths in _by_place(self.files, self.code).items() if differing[0] in paths)
            raise RunError(
                f"{differing[0]} was changed while the run read it",
                where=where,
                remedy=UNCHANGED,
            )

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file by its place in the spec; of a folder, the address of all its files.

        Raises:
            SpecError: A file cannot be read.
        """
        return {place: _digest(named) for place, named in self.files.items()}


def _by_place(files: Mapping[str, Mapping[str, Path]], code: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    return {place: list(named.values()) for place, named in files.items()} | {
        f"code of {place}": list(paths) for place, paths in code.items()
    }


def _digest(named: Mapping[str, Path]) -> str:
    if "" in named:
        return input_digest(named[""])
    return address({name: input_digest(path) for name, path in named.items()})


def without_places(value: Any, folder: Path) -> Any:
    """Plain data without the place of the project on this machine, so that no user's name stands in a record.

    Args:
        value: Settings; every absolute path of an existing file or folder in them is shortened.
        folder: The spec's folder.

    Returns:
        The settings, with paths relative to the spec's folder. A path that the spec gives in full and that lies
        elsewhere becomes its last name.
    """
    if isinstance(value, Mapping):
        return {key: without_places(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item, folder) for item in value]
    if not isinstance(value, str) or "\0" in value:
        return value
    path = Path(value)
    if not path.is_absolute() or signature(path) is None:
        return value
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name or value
