"""Folders in which an unlearned model is handed over: complete or absent, and with the digest of every file. No torch.

`expunge.json` in the folder names each file and its SHA-256. Only a folder that holds exactly what its `expunge.json`
names is replaced by a new one, so that no file of the user's is ever lost.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.base.errors import ExpungeError, RunError, SpecError
from expunge.base.reading import path_inside, read_inside
from expunge.base.record import file_digest, random_name, storage_error, write_file

MARK = "expunge.json"
"""File that names all other files of the folder, with their digests."""
CARD = "README.md"
FORMAT = 1


def refuse_foreign(folder: Path, where: str) -> None:
    """Refuse to write a model where something else is.

    Args:
        folder: Where the model is to go. Nothing there, an empty folder, or a folder that expunge wrote is fine.
        where: The option that names it, for messages.

    Raises:
        SpecError: There is a file, a link, or a folder that holds anything that its `expunge.json` does not name.
    """
    remedy = "choose another folder, or move this one away"
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        raise SpecError(f"{folder} is no folder", where=where, allowed="a new folder", remedy=remedy)
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in present if name not in _named(folder)]
    if foreign:
        finding = f"{folder} exists and holds {foreign[0]}, which expunge did not write"
        allowed = "a new folder, or one that expunge wrote and nobody added to"
        raise SpecError(finding, where=where, allowed=allowed, remedy=remedy)


def _named(folder: Path) -> set[str]:
    """The files that the folder's `expunge.json` names, and itself; none if it is not readable."""
    try:
        return {*digests_of(folder), MARK}
    except ExpungeError:
        return set()


@contextmanager
def new_folder(folder: Path, where: str) -> Iterator[Path]:
    """A temporary folder that gets the name `folder` when the block ends without an error, with `expunge.json` in it.

    Args:
        folder: The final name. A folder that expunge wrote there is replaced.
        where: As in `refuse_foreign`.

    Raises:
        SpecError: As for `refuse_foreign`.
        RunError: The disk is full, or the folder cannot be written to. Nothing half-written is left.
    """
    refuse_foreign(folder, where)
    temporary = folder.with_name(f"{random_name(folder.name)}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        files = sorted(path for path in temporary.iterdir())
        for path in files:
            _flush(path)
        table: dict[str, Any] = {"format": FORMAT, "files": {path.name: file_digest(path) for path in files}}
        write_file(temporary / MARK, json.dumps(table, indent=1) + "\n")
        refuse_foreign(folder, where)  # the model may have taken hours
        _rename(temporary, folder)
    except OSError as error:
        raise storage_error(error, folder) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _rename(temporary: Path, folder: Path) -> None:
    """Put a complete folder in the place of an earlier one, which is removed afterwards."""
    if not folder.is_dir():
        temporary.rename(folder)
        return
    aside = folder.with_name(f"{random_name(folder.name)}.old")
    folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a model folder, as its `expunge.json` gives it.

    Raises:
        RunError: The file is missing, or is not as expunge writes it.
    """
    path = folder / MARK
    try:
        table = json.loads(read_inside(folder, MARK))
    except (ValueError, RecursionError) as error:
        raise RunError(f"the file is damaged ({error})", where=str(path), remedy="save the model again") from None
    files = table.get("files") if isinstance(table, dict) else None
    plain = isinstance(files, dict) and all(
        isinstance(digest, str) and name == Path(name).name for name, digest in files.items()
    )
    if not plain or table.get("format") != FORMAT:
        raise RunError("it does not list the files of a model", where=str(path), remedy="save the model again")
    assert isinstance(files, dict)
    return files


def is_model_folder(folder: Path) -> bool:
    """Whether a folder was written by `new_folder`."""
    return os.path.lexists(folder / MARK)


def verify_folder(folder: Path) -> dict[str, int]:
    """Check that the files of a model folder are those that were written.

    Returns:
        The number of digests that were checked; all of them agree.

    Raises:
        RunError: A file is missing, was changed, or was added.
    """
    digests = digests_of(folder)
    for name, digest in digests.items():
        path_inside(folder, name, digest)
    added = sorted({path.name for path in folder.iterdir()} - digests.keys() - {MARK})
    if added:
        raise RunError("this file was added after the model was written", where=str(folder / added[0]))
    return {"digests": len(digests)}
