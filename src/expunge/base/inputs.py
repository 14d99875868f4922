"""Files that a run reads: each content is hashed once, and a change while the run reads a file is noticed. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from expunge.base.errors import SpecError
from expunge.base.record import file_digest

Signature = tuple[int, int, int]
"""Size in bytes, and the times in ns of the last change of the content and of the file's entry in the file system."""
SECOND = 10**9
"""In ns."""
RECENT, COARSE = SECOND // 10, 4 * SECOND
"""A file that was changed in the last 0.1 s may change again without another time stamp: its digest is not kept. Some
file systems keep whole seconds, or even ones only."""

_digests: dict[Path, tuple[Signature, str]] = {}


def signature(path: Path) -> Signature | None:
    """What changes whenever the content of a file changes; `None` if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes. This process reads the file again only if the file has changed since.

    Raises:
        OSError: The file cannot be read.
    """
    place, before = path.absolute(), signature(path)
    known = _digests.get(place)
    if known is not None and known[0] == before:
        return known[1]
    computed = file_digest(path)
    if before is not None and before == signature(path) and _is_settled(before):
        _digests[place] = before, computed
    return computed


def _is_settled(before: Signature) -> bool:
    """Whether another change now would have another time stamp."""
    coarse = all(time_stamp % SECOND == 0 for time_stamp in before[1:])
    return max(before[1:]) < time.time_ns() - (COARSE if coarse else RECENT)


def input_digest(path: Path) -> str:
    """`digest` of a file that the user names.

    Raises:
        SpecError: The file cannot be read.
    """
    try:
        return digest(path)
    except OSError as error:
        finding = f"cannot read ({error.strerror})"
        raise SpecError(finding, where=str(path), remedy="check the file and its permissions") from None


def signatures(files: Iterable[Path]) -> dict[Path, Signature | None]:
    """The signature of each file."""
    return {path: signature(path) for path in files}


def changed(before: Mapping[Path, Signature | None]) -> list[Path]:
    """The files whose signature differs from an earlier one: they were changed, replaced, moved or deleted."""
    return [path for path, earlier in before.items() if signature(path) != earlier]
