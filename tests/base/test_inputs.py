"""Digests follow contents however quickly they change, and a file that was touched in any way is noticed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.base import inputs
from expunge.base.errors import SpecError
from expunge.base.inputs import changed, digest, input_digest, signatures


def test_the_digest_is_that_of_the_content_at_any_speed(tmp_path: Path) -> None:
    """Many changes of one size fall within one time stamp of the file system."""
    path = tmp_path / "a"
    for i in range(300):
        content = f"{i:06d}".encode()
        path.write_bytes(content)
        assert digest(path) == hashlib.sha256(content).hexdigest()


def test_a_file_that_stays_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "a", list[Path]()
    path.write_bytes(b"abc")
    time.sleep(0.2)
    read = inputs.file_digest
    monkeypatch.setattr(inputs, "file_digest", lambda path: reads.append(path) or read(path))
    assert len({digest(path) for _ in range(50)}) == 1 and len(reads) == 1
    path.write_bytes(b"abd")
    assert digest(path) == hashlib.sha256(b"abd").hexdigest() and len(reads) == 2


@pytest.mark.parametrize("grain", [1, 2, 0.01])
def test_the_digest_is_that_of_the_content_where_time_stamps_are_coarse(
    grain: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole seconds on old network disks, even ones on FAT, hundredths on exFAT."""
    path, signature, coarse = tmp_path / "a", inputs.signature, int(grain * 10**9)
    path.write_bytes(b"abc")
    now = time.time_ns()

    def kept(path: Path) -> inputs.Signature | None:
        found = signature(path)
        return found and (found[0], *(now // coarse * coarse for _ in found[1:]))  # type: ignore[return-value]

    monkeypatch.setattr(inputs, "signature", kept)
    # Both writes have one time stamp.
    monkeypatch.setattr(time, "time_ns", lambda: now // coarse * coarse + coarse * 9 // 10)
    assert digest(path) == hashlib.sha256(b"abc").hexdigest()
    path.write_bytes(b"abd")
    assert digest(path) == hashlib.sha256(b"abd").hexdigest()


def rewritten(path: Path) -> None:
    """Another content of the same size, with the old time of the last change."""
    status = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"abd")
    os.replace(other, path)


def away_and_back(path: Path) -> None:
    """Another file was in its place for a moment."""
    aside = path.with_name("aside")
    path.rename(aside)
    path.write_bytes(b"abd")
    aside.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": rewritten,
    "replaced": replaced,
    "away and back": away_and_back,
    "longer": lambda path: path.write_bytes(b"abcd"),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change: str, tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"abc")
    other.write_bytes(b"abc")
    before = signatures([path, other])
    assert changed(before) == []
    time.sleep(0.05)
    path.read_bytes()
    CHANGES[change](path)
    assert changed(before) == [path]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"{tmp_path}/none: cannot read .*check the file"):
        input_digest(tmp_path / "none")
