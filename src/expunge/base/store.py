"""The store of stages' outputs on disk: each output is a folder, complete or absent, and checked when it is read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from expunge.base.errors import RunError
from expunge.base.inputs import digest
from expunge.base.reading import read_inside
from expunge.base.record import (
    copy_file,
    locked,
    make_private,
    random_name,
    remove,
    sealed,
    storage_error,
    sweep,
    unsealed,
    write_file,
)

FORMAT = 3
"""How outputs are stored. It enters the keys of stages, so that outputs of another format are not used."""
FACTS = "stage.json"
"""File of an output that names its key, its cost, and the digest of every other file and of itself."""
RERUN = "run the same again, which computes it again"

_Name = Annotated[str, msgspec.Meta(pattern=r"\A[^./\\\x00][^/\\\x00]*\Z")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Facts(msgspec.Struct):
    """What every `stage.json` must hold; it may hold more."""

    key: str
    stage: str
    gradients: int
    seconds: float
    files: dict[_Name, _Digest]
    changed: bool | None = None
    """Whether a method changed any weight; none for other stages."""
    kept: str = ""
    """For a method that changed only the upper half of the original: the last layer below its first change."""


@dataclass(frozen=True)
class Store:
    """Outputs of stages by content address, shared between runs. Only the owner of a new store may read it.

    Nothing in it is believed: digests are compared on every read, and `fault` finds what is damaged before a run.
    """

    root: Path

    def open(self) -> None:
        """Make the store's folder, and remove temporary folders that killed processes left in it.

        Raises:
            RunError: The folder cannot be written to.
        """
        make_private(self.root)
        self.sweep()

    def sweep(self) -> None:
        """Remove the temporary folders that are a day old."""
        sweep(self.root, ".*.*")

    def fault(self, key: str, names: Iterable[str] | None = None) -> str | None:
        """What is wrong with a stored output.

        Args:
            key: Its content address.
            names: The files that the stage writes; by default those that its `stage.json` names.

        Returns:
            `None` if the output is complete and has not changed; the empty string if there is none; otherwise what is
            damaged, in words.
        """
        if not os.path.lexists(self.root / key):
            return ""
        try:
            files = self._facts(key).files
        except RunError as error:
            return error.finding
        if names is not None and files.keys() != set(names):
            return f"{FACTS} names {', '.join(sorted(files)) or 'no files'}"
        faults = (_fault(self.path(key, name), expected) for name, expected in files.items())
        return next((fault for fault in faults if fault is not None), None)

    def has(self, key: str) -> bool:
        """Whether the output of the stage with this key is there, complete and unchanged."""
        return self.fault(key) is None

    def path(self, key: str, name: str) -> Path:
        """Path of a file of a finished stage."""
        return self.root / key / name

    def place(self, key: str, name: str) -> str:
        """Place of a file of a finished stage, for messages."""
        return str(self.path(key, name))

    def read(self, key: str, name: str) -> bytes:
        """The content of a file of a finished stage.

        Raises:
            RunError: It cannot be read, or it has changed since the stage wrote it.
        """
        expected = self.digest(key, name)
        content = read_inside(self.root, f"{key}/{name}", largest=None)
        if hashlib.sha256(content).hexdigest() != expected:
            raise _changed(self.path(key, name))
        return content

    def keep(self, key: str, name: str, target: Path) -> None:
        """Put a copy of a stored file into a run's folder, unless it is there already; see `copy_file`.

        Raises:
            RunError: It could not be written, or the stored file has changed since the stage wrote it.
        """
        expected = self.digest(key, name)
        # A record of an earlier version may hold a hard link into the store.
        if _fault(target, expected) is None and target.lstat().st_nlink == 1:
            return
        if copy_file(self.path(key, name), target) != expected:
            target.unlink()
            raise _changed(self.path(key, name))

    def facts(self, key: str) -> dict[str, Any]:
        """The facts that a finished stage recorded about itself, mainly its cost.

        Raises:
            RunError: They cannot be read.
        """
        return msgspec.structs.asdict(self._facts(key))

    def digest(self, key: str, name: str) -> str:
        """SHA-256 of a file of a finished stage when the stage wrote it.

        Raises:
            RunError: The stage's facts cannot be read, or name no such file.
        """
        files = self._facts(key).files
        if name not in files:
            raise RunError(f"it does not name {name}", where=self.place(key, FACTS), remedy=RERUN)
        return files[name]

    def put(self, key: str, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
        """Store a stage's output, unless a complete one is there already.

        Args:
            key: Its content address.
            files: Name to content.
            facts: Plain data for `facts`.

        Raises:
            RunError: It could not be written; nothing is left under the key.
        """
        temporary = self.root / random_name(key)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        stage_json = sealed({**facts, "key": key, "files": digests}).encode()
        try:
            for name, content in {**files, FACTS: stage_json}.items():
                write_file(temporary / name, content)
            self._rename(temporary, key)
        except OSError as error:
            raise storage_error(error, self.root / key) from None
        finally:
            remove(temporary)

    def discard(self, key: str) -> None:
        """Remove an output, whatever is there in its place.

        Raises:
            RunError: It could not be removed.
        """
        aside = self.root / random_name(key)
        try:
            os.replace(self.root / key, aside)
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, self.root / key) from None
        remove(aside)

    def _rename(self, temporary: Path, key: str) -> None:
        """Give a complete folder its final name, unless another run has stored the same output a moment before."""
        fault = self.fault(key)
        if fault is None:
            return
        if fault:
            with locked(self.root):
                # Another run may have stored a good one since.
                if self.fault(key):
                    self.discard(key)
        try:
            os.replace(temporary, self.root / key)
        except OSError:
            if not self.has(key):
                raise

    def _facts(self, key: str) -> _Facts:
        path = self.path(key, FACTS)
        try:
            facts = msgspec.convert(unsealed(read_inside(self.root, f"{key}/{FACTS}")), _Facts)
        except RunError as error:
            place = error.where.removeprefix(f"{self.root / key}").lstrip("/") or "its folder"
            raise RunError(f"{place}: {error.finding}", where=str(path), remedy=RERUN) from None
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise RunError(f"{FACTS} is damaged ({error})", where=str(path), remedy=RERUN) from None
        if facts.key != key:
            raise RunError(f"{FACTS} is that of another output", where=str(path), remedy=RERUN)
        return facts


def _fault(path: Path, expected: str) -> str | None:
    """What is wrong with a file that should have this digest; `None` if nothing is."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return f"{path.name} is not a regular file"
        return None if digest(path) == expected else f"{path.name} has changed"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def _changed(path: Path) -> RunError:
    return RunError("the file has changed since it was computed", where=str(path), remedy=RERUN)
