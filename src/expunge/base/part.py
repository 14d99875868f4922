"""A part is its configuration: a frozen dataclass whose fields are its settings, validated where it is made.

`WeightDistortion(sigma=0.1)` is what a spec's table becomes, what is hashed into a stage's key, printed, and called.
There is no second configuration class beside it.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import inspect
import math
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import msgspec

from expunge.base.errors import SpecError, unknown

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


def source_digest(thing: Any) -> str:
    """SHA-256 of the file that a class or function is written in; of nothing where there is no such file."""
    try:
        file = inspect.getsourcefile(thing)
    except TypeError:
        file = None
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's own, which is what is checked, hashed and written; anything else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


@cache
def _hints(part: type) -> dict[str, Any]:
    return typing.get_type_hints(part, include_extras=True)


@dataclasses.dataclass(frozen=True)
class Part(abc.ABC):  # noqa: B024 - what is abstract differs by kind
    """Base of everything registered: data sets, models, tasks, methods, attacks, audits, diagnostics.

    Raises:
        SpecError: A field has the wrong type or lies outside its range; names field, finding and allowed values.
    """

    version: ClassVar[int] = 1
    """Raised whenever the part would compute other numbers; enters the key of every stage that uses it, and the record:
    runs with other versions of data, task or audits are not compared."""
    cite: ClassVar[str | tuple[str, ...]] = ""
    """Keys of the sources in `references.bib`, empty where there is none; other packages give BibTeX itself."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Fields that name files: relative ones count from the spec's folder, and contents enter the fingerprint."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            value = _plain(getattr(self, field.name))
            try:
                checked = msgspec.convert(value, hints[field.name])
            except msgspec.ValidationError as error:
                told = str(error)
                raise SpecError(f"found {value!r}: {told[0].lower()}{told[1:]}", where=field.name) from None
            if isinstance(checked, float) and not math.isfinite(checked):
                raise SpecError(f"found {value!r}", where=field.name, allowed="a finite number")
            object.__setattr__(self, field.name, checked)

    def settings(self) -> dict[str, Any]:
        """Every field with its value, given or default, as plain data."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def fingerprint(self) -> dict[str, Any]:
        """What enters the keys of stages that use this part."""
        settings = self.settings()
        for name in self.paths:
            file = Path(settings[name] or "")
            if file.is_file():
                settings[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        found = {"part": type(self).__qualname__, "version": self.version, "settings": settings}
        # A part of the user's has no version to trust: its source file is its version.
        ours = type(self).__module__.partition(".")[0] == __package__.partition(".")[0]
        return found if ours else {**found, "module": type(self).__module__, "code": source_digest(type(self))}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str, folder: Path | None = None) -> Self:
        """The part that a spec's table describes.

        Args:
            table: Settings by field name.
            where: The table's place in the spec, for messages.
            folder: What relative paths count from; the working directory where not given.

        Returns:
            The part.

        Raises:
            SpecError: An unknown key, a missing one, or a value that does not fit.
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
        try:
            return cls(**settings)
        except SpecError as error:
            raise error.at(where) from None
