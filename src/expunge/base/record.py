"""Files that are either complete or absent: content addresses, atomic writes, copies, and the text of rows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError

ABANDONED = 24 * 3600
"""Seconds after which a temporary file belongs to no process: each is written within minutes."""
PATIENCE = 300.0
"""Seconds to wait for another process that writes into the same folder; a whole record takes a few."""
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{16}|[0-9]+)(\.tmp)?", re.DOTALL)
"""Temporary names; those of earlier versions hold a process id."""
_FICLONE = 0x40049409
"""Linux's request to share the blocks of another file."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value gives the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def address(value: Any) -> str:
    """Content address of plain data: 32 hexadecimal digits of SHA-256 over its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def sealed(table: Mapping[str, Any]) -> str:
    """JSON of a table together with its own SHA-256, so that a change of it is noticed."""
    plain = json.loads(canonical(table))  # numbers as keys become texts, which have another order
    return canonical({**plain, "sha256": hashlib.sha256(canonical(plain).encode()).hexdigest()})


def unsealed(content: bytes) -> dict[str, Any]:
    """The table in a text that `sealed` made.

    Raises:
        ValueError: It is damaged, or not the one that was sealed.
        RecursionError: It is nested too deeply.
    """
    table = json.loads(content)
    expected = table.pop("sha256", None) if isinstance(table, dict) else None
    if expected is None or hashlib.sha256(canonical(table).encode()).hexdigest() != expected:
        raise ValueError("it has changed since it was written")
    return dict(table)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it: a reader never sees half a file.

    Args:
        path: The final name; its folder is created.
        content: Bytes, or text, which is written as UTF-8.

    Raises:
        RunError: The disk is full, or the folder cannot be written to. An earlier file stays unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{random_name(path.name)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(error, path) from None
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder, whatever is there; what cannot be removed stays. The target of a link stays."""
    # Where a folder above may not be searched, even the question what is there fails.
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def storage_error(error: OSError, path: Path) -> RunError:
    """The error for a failed write, with a remedy."""
    remedies = {
        errno.ENOSPC: ("the disk is full", "free some space and run the same command again; finished stages are kept"),
        errno.EACCES: ("the folder is not writable", "make it writable, or choose another folder"),
        errno.EROFS: ("the file system is read-only", "choose another folder"),
        errno.ENOTDIR: ("a file is in the way of the folder", "choose another folder"),
        errno.EEXIST: ("a file is in the way of the folder", "choose another folder"),
        errno.EISDIR: ("a folder is in the way of the file", "check the path, and move the folder away"),
    }
    finding, remedy = remedies.get(error.errno or 0, (f"cannot write ({error.strerror or error})", "check the path"))
    return RunError(finding, where=str(path), remedy=remedy)


def rows_to_text(rows: list[dict[str, Any]]) -> str:
    """One JSON object a line. JSON has no NaN or infinity, so those are written as strings, see `spelled`."""
    return "".join(json.dumps(spelled(row), allow_nan=False) + "\n" for row in rows)


def spelled(value: Any) -> Any:
    """The value with NaN and infinities replaced by `"NaN"`, `"Infinity"`, `"-Infinity"`, at any depth."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    return value


def sweep(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Remove temporary files and folders that no process can still be writing, because they are a day old.

    Age is the only sign that holds when containers or hosts share the folder: they do not see each other's processes.

    Args:
        folder: Where to look.
        pattern: Of the paths; only names that `random_name` makes are removed.
    """
    temporary = [path for path in folder.glob(pattern) if _TEMPORARY.fullmatch(path.name)]
    oldest = _clock(folder) - ABANDONED if temporary else 0.0
    for path in temporary:
        with contextlib.suppress(OSError):
            if max(path.lstat().st_mtime, *(entry.lstat().st_mtime for entry in path.glob("*")), 0.0) < oldest:
                remove(path)


def _clock(folder: Path) -> float:
    """The time in seconds by the clock that stamps files in a folder; on a network disk, it is not this host's.

    Minus infinity if nothing can be written there.
    """
    probe = folder / f"{random_name('clock')}.tmp"
    try:
        with open(probe, "xb"):
            return probe.lstat().st_mtime
    except OSError:
        return -math.inf
    finally:
        remove(probe)


def random_name(name: str) -> str:
    """A hidden name that no other process chooses, not even one with the same process id on another host."""
    return f".{name}.{secrets.token_hex(8)}"


def copy_file(source: Path, target: Path) -> str:
    """Copy a file under a temporary name, flush it to disk, and rename it.

    File systems that can (btrfs, XFS, bcachefs) share the blocks of both files until one of them is changed. The copy
    is never a hard link, so that a change of one file does not reach the other.

    Returns:
        SHA-256 of the copy.

    Raises:
        RunError: It could not be written.
    """
    temporary = target.with_name(f"{random_name(target.name)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(source, "rb") as original, open(temporary, "xb") as copy:
            if not _shares_blocks(original.fileno(), copy.fileno()):
                shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        digest = file_digest(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise storage_error(error, target) from None
    finally:
        remove(temporary)
    return digest


def _shares_blocks(source: int, target: int) -> bool:
    """Let two open files share their blocks; false if the system or the file system cannot."""
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process of this machine or of its containers is inside for the same folder.

    On file systems without locks nothing is locked. A lock ends with its process.

    Raises:
        RunError: Another process has been inside for minutes; it may be stopped.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        _wait(folder, lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def _wait(folder: Path, lock: Callable[[], None]) -> None:
    """Try to lock until it succeeds, or is not possible on this file system."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            lock()
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return
        else:
            return
    remedy = "wait until it has finished, or end it; then run the same again"
    raise RunError(f"another process has been writing here for {PATIENCE:.0f} s", where=str(folder), remedy=remedy)


def make_private(folder: Path) -> None:
    """Create a folder that only its owner may read. A folder that exists keeps its permissions.

    Raises:
        RunError: It could not be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from None
