"""A part is its configuration: a frozen dataclass whose fields are its settings, checked when it is constructed.

A spec's table becomes an object such as `WeightDistortion(sigma=0.1)`. The same object is hashed into a stage's key,
printed, and called. There is no second configuration class.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import os
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import msgspec

from expunge.base.errors import SpecError, unknown
from expunge.base.extremes import refuse_extremes
from expunge.base.inputs import input_digest
from expunge.base.reading import refuse_unreadable
from expunge.base.user_code import OURS, code_files, source_digest

Count = Annotated[int, msgspec.Meta(ge=1)]
"""A whole number of at least 1."""
Natural = Annotated[int, msgspec.Meta(ge=0)]
"""A whole number of at least 0."""
Positive = Annotated[float, msgspec.Meta(gt=0)]
"""A number above 0."""
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
"""A number of at least 0."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A share between 0 and 1."""


def _plain(value: Any) -> Any:
    """A NumPy number as a Python number, so that it can be checked, hashed and written; other values unchanged."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


MOST_FILES = 10_000
"""Files in a folder that a setting names: a model or a data set has far fewer, and a home folder has more."""


def _files(path: Path, field: str) -> dict[str, Path]:
    if path.is_file():
        return {"": path}
    files: list[Path] = []
    for folder, _, names in os.walk(path):
        # `Path.is_file` fails where a link leads to something that may not be looked at.
        files += [Path(folder) / name for name in names if os.path.isfile(f"{folder}/{name}")]  # noqa: PTH113
        if len(files) > MOST_FILES:
            finding = f"{path} holds more than {MOST_FILES} files"
            raise SpecError(finding, where=field, allowed="a file, or the folder of a model or data set")
    return {str(file.relative_to(path)): file for file in sorted(files)}


@cache
def _hints(part: type) -> dict[str, Any]:
    return typing.get_type_hints(part, include_extras=True)


@dataclasses.dataclass(frozen=True)
class Part(abc.ABC):  # noqa: B024 - each kind has abstract methods of its own
    """Base class of everything registered: data sets, models, tasks, methods, attacks, audits, diagnostics.

    Raises:
        SpecError: A field has the wrong type or lies outside its range. The message names field, value and range.
    """

    version: ClassVar[int] = 1
    """Increased when the part computes different numbers. It enters the key of every stage that uses the part, and the
    record: runs are not compared if the versions of data, task or audits differ."""
    cite: ClassVar[str | tuple[str, ...]] = ""
    """Keys of the sources in `references.bib`, empty if there is none. Parts of other packages give the BibTeX text."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Fields that hold paths of files or folders. Relative paths start at the spec's folder. Contents enter the
    fingerprint, and places do not: a project that is moved keeps its stored outputs."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            value = _plain(getattr(self, field.name))
            refuse_extremes(value, field.name)
            try:
                checked = msgspec.convert(value, hints[field.name])
            except msgspec.ValidationError as error:
                reason = str(error)
                raise SpecError(f"found {value!r}: {reason[0].lower()}{reason[1:]}", where=field.name) from None
            if isinstance(checked, float) and not math.isfinite(checked):
                raise SpecError(f"found {value!r}", where=field.name, allowed="a finite number")
            object.__setattr__(self, field.name, checked)

    def settings(self) -> dict[str, Any]:
        """Every field with its value, given or by default, as plain data."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def input_files(self) -> dict[str, dict[str, Path]]:
        """The files that this part reads, by field, and by name within the field's folder (empty for a single file).

        Fields whose file does not exist are left out; a part reports them when it is called.
        """
        paths = {field: Path(value) for field in self.paths if (value := getattr(self, field))}
        files = {field: _files(path, field) for field, path in paths.items()}
        return {field: by_name for field, by_name in files.items() if by_name}

    def code_files(self) -> list[Path]:
        """The files of the user's code that this part is made of; none of expunge's own parts."""
        return code_files(type(self))

    def fingerprint(self) -> dict[str, Any]:
        """What enters the keys of stages that use this part."""
        settings = self.settings()
        for field, files in self.input_files().items():
            digests = {name: input_digest(file) for name, file in files.items()}
            settings[field] = digests.get("", digests)
        identity = {"part": type(self).__qualname__, "version": self.version, "settings": settings}
        # Nobody maintains the version of a user's own part, so its source code is hashed as well.
        ours = type(self).__module__.partition(".")[0] == OURS
        return identity if ours else {**identity, "module": type(self).__module__, "code": source_digest(type(self))}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str, folder: Path | None = None) -> Self:
        """The part that a spec's table describes.

        Args:
            table: Settings by field name.
            where: The table's place in the spec, for messages.
            folder: Where relative paths start; by default the working directory.

        Returns:
            The part.

        Raises:
            SpecError: A key is unknown or missing, or a value has the wrong type or range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in table:
            if key not in fields:
                raise unknown("key", key, fields, where=where)
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in table:
                raise SpecError(f"{name!r} is missing", where=where, remedy=f"add a value for {name!r}")
        settings = dict(table)
        for name in cls.paths:
            if folder is not None and isinstance(settings.get(name), str):
                settings[name] = str(folder / settings[name])
                refuse_unreadable(Path(settings[name]), where=f"{where}.{name}")
        try:
            return cls(**settings)
        except SpecError as error:
            raise error.at(where) from None
