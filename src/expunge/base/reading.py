"""Opens files that somebody else may have written: those of a received record, and those that a spec names.

A record may come from anybody. So its files are read only if they are regular files inside its folder, without links on
the way, and only if their content has the digest that the manifest gives. A pipe or a device is refused before it could
block the reader.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from expunge.base.errors import ExpungeError, RunError, SpecError
from expunge.base.record import storage_error, write_file

RERUN = "run `expunge run SPEC` again, which keeps finished stages"
LARGEST = 2**31
"""Size in bytes above which a file of a record is not read into memory."""
_CHUNK = 2**20
# Windows has neither flag; there, links are found by `lstat` alone.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_HANDLES = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
"""Whether a file can be opened by its name in an open folder; not on Windows."""
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFREG: "a file",
}


def read_inside(folder: Path, name: str, sha256: str | None = None, largest: int | None = LARGEST) -> bytes:
    """The content of a file of a record.

    Args:
        folder: The record's folder.
        name: Path of the file in the folder, with `/` between its parts.
        sha256: The digest that the content must have; any, if there is none in the record.
        largest: The most bytes that the file may have.

    Raises:
        RunError: The path leaves the folder, or is no regular file that can be read; or the content has another digest.
    """
    with open_inside(folder, name) as file, _reading_of(folder / name):
        content = file.read(-1 if largest is None else largest + 1)
        if largest is not None and len(content) > largest:
            raise RunError("it is too large", where=str(folder / name), allowed=f"at most {largest} bytes")
    _check_digest(hashlib.sha256(content).hexdigest(), sha256, folder / name)
    return content


def path_inside(folder: Path, name: str, sha256: str | None = None) -> Path:
    """The path of a file of a record, for a reader that maps the file into memory; checked as in `read_inside`."""
    with open_inside(folder, name) as file, _reading_of(folder / name):
        sha = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    _check_digest(sha.hexdigest(), sha256, folder / name)
    return folder / name


def open_inside(folder: Path, name: str) -> BinaryIO:
    """Open a file of a record for reading.

    Raises:
        RunError: As for `read_inside`.
    """
    with _reading_of(folder / name), contextlib.ExitStack() as opened:
        *outer, last = _words(folder, name)
        path, at = folder, _handle(folder, None, opened)
        for word in outer:
            path = path / word
            _require(path, _status(path, at).st_mode, stat.S_ISDIR)
            at = _handle(path, at, opened)
        path = path / last
        _require(path, _status(path, at).st_mode, stat.S_ISREG)
        file = os.fdopen(os.open(path if at is None else last, os.O_RDONLY | _FLAGS, dir_fd=at), "rb")
    try:
        # It may have been replaced since the check.
        _require(path, os.fstat(file.fileno()).st_mode, stat.S_ISREG)
    except RunError:
        file.close()
        raise
    return file


def _status(path: Path, at: int | None) -> os.stat_result:
    """What is at a path, without following links; `at` is the handle of its folder."""
    return path.lstat() if at is None else os.stat(path.name, dir_fd=at, follow_symlinks=False)


def _handle(path: Path, at: int | None, opened: contextlib.ExitStack) -> int | None:
    """A handle of a folder, so that nobody can put a link in its place afterwards; none where the system has none."""
    if not _HANDLES:
        return None
    # The folder of the record itself may be a link: the user has named it.
    flags = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY) | (0 if at is None else _FLAGS)
    handle = os.open(path if at is None else path.name, flags, dir_fd=at)
    opened.callback(os.close, handle)
    return handle


def append_inside(folder: Path, name: str, line: str) -> None:
    """Append a line to a file of a record; never to a file elsewhere that a link or a hard link names.

    Raises:
        RunError: The file is a link or no regular file, or cannot be written.
    """
    path = folder / name
    try:
        if os.path.lexists(path):
            _require(path, path.lstat().st_mode, stat.S_ISREG)
            if path.lstat().st_nlink > 1:
                write_file(path, path.read_bytes())  # a copy of its own
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS, 0o666)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise storage_error(error, path) from None


def refuse_links(folder: Path) -> None:
    """Refuse a folder to write into that holds links, through which a file elsewhere would be changed.

    Raises:
        SpecError: There is a link; the message names it.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink():
            allowed = "files and folders, as expunge writes them"
            raise SpecError("this is a link", where=str(path), allowed=allowed, remedy="remove it")


def read_given(path: Path, *, where: str) -> bytes:
    """The content of a file that the user names.

    Args:
        path: The file; links are followed.
        where: Place of the path in the spec, for messages.

    Raises:
        SpecError: There is no such file, it is no regular file, or it cannot be read.
    """
    require_file(path, where=where)
    with _given(path, where):
        return path.read_bytes()


def require_file(path: Path, *, where: str) -> None:
    """Refuse a path of the user's that names no regular file which this process may read.

    Raises:
        SpecError: As for `read_given`.
    """
    with _given(path, where):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise SpecError(f"{path} is {_kind(mode)}", where=where, allowed="a file", remedy="check the path")
        _require_access(path)


def refuse_unreadable(path: Path, *, where: str) -> None:
    """Refuse a path of the user's that cannot be looked at, or a file that cannot be opened.

    A path at which there is nothing, or a folder, is left to the part that needs it.

    Raises:
        SpecError: The name is too long, a link leads nowhere, or this process lacks the permission.
    """
    with _given(path, where), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISREG(path.stat().st_mode):
            _require_access(path)


def _require_access(path: Path) -> None:
    """Ask for the permission without opening the file: a large one may be on a slow disk."""
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _given(path: Path, where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SpecError(f"cannot read {path} ({reason})", where=where, remedy="check the path") from None


@contextmanager
def consistent(folder: Path | str) -> Iterator[None]:
    """Whatever goes wrong with the content of a record becomes one message.

    Files with the right digests may still hold anything, if somebody has written the digests anew.

    Raises:
        RunError: Code that reads the record failed; the message says how and where.
    """
    try:
        yield
    except ExpungeError:
        raise
    except Exception as error:
        step = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(step.filename).name}:{step.lineno}"
        finding = f"the record contradicts itself ({type(error).__name__} in {place}: {error})"
        raise RunError(finding, where=str(folder), allowed="a record as expunge wrote it", remedy=RERUN) from error


def _words(folder: Path, name: str) -> list[str]:
    words = name.split("/")
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root
    if absolute or "\0" in name or any(word in ("", ".", "..") for word in words):
        allowed = "the path of a file inside the folder"
        raise RunError(f"the record names the file {name!r}", where=str(folder), allowed=allowed, remedy=RERUN)
    return words


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "of another kind")


def _require(path: Path, mode: int, fits: Callable[[int], bool]) -> None:
    if not fits(mode):
        allowed = "a folder" if fits is stat.S_ISDIR else "a regular file"
        raise RunError(f"this is {_kind(mode)}", where=str(path), allowed=allowed, remedy=RERUN)


@contextmanager
def _reading_of(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RunError("the file is missing", where=str(path), remedy=RERUN) from None
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RunError(f"cannot read ({reason})", where=str(path), remedy=RERUN) from None


def _check_digest(digest: str, expected: str | None, path: Path) -> None:
    if expected is not None and digest != expected:
        finding = f"the file was changed: its SHA-256 is {digest}"
        raise RunError(finding, where=str(path), allowed=expected, remedy=RERUN)
