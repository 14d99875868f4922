"""Files that are either complete or absent: content addresses, atomic writes, and the store of stages' outputs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value gives the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def address(value: Any) -> str:
    """Content address of plain data: 32 hexadecimal digits of SHA-256 over its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it: a reader never sees half a file.

    Args:
        path: The final name; its folder is created.
        content: Bytes, or text, which is written as UTF-8.

    Raises:
        RunError: The disk is full, or the folder cannot be written to. An earlier file stays unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.{os.getpid()}.tmp")
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
        _remove(temporary)


def _remove(temporary: Path) -> None:
    # If the folder is missing or is a file, there is nothing to remove.
    with contextlib.suppress(OSError):
        temporary.unlink()


def storage_error(error: OSError, path: Path) -> RunError:
    """The error for a failed write, with a remedy."""
    remedies = {
        errno.ENOSPC: ("the disk is full", "free some space and run the same command again; finished stages are kept"),
        errno.EACCES: ("the folder is not writable", "choose another with --out"),
        errno.EROFS: ("the file system is read-only", "choose another folder with --out"),
        errno.ENOTDIR: ("a file is in the way of the folder", "choose another folder with --out"),
        errno.EEXIST: ("a file is in the way of the folder", "choose another folder with --out"),
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


@dataclass(frozen=True)
class Store:
    """Outputs of stages by content address, shared between runs; each is a folder that is complete or absent."""

    root: Path

    def has(self, key: str) -> bool:
        """Whether the stage with this key has finished."""
        return (self.root / key / "stage.json").is_file()

    def path(self, key: str, name: str) -> Path:
        """Path of a file of a finished stage."""
        return self.root / key / name

    def read(self, key: str, name: str) -> bytes:
        """The content of a file of a finished stage.

        Raises:
            RunError: It cannot be read.
        """
        path = self.path(key, name)
        try:
            return path.read_bytes()
        except OSError as error:
            finding, remedy = f"cannot read ({error.strerror})", f"delete {path.parent} and run again"
            raise RunError(finding, where=str(path), remedy=remedy) from None

    def place(self, key: str, name: str) -> str:
        """Place of a file of a finished stage, for messages."""
        return str(self.path(key, name))

    def keep(self, key: str, name: str, target: Path) -> None:
        """Put a stored file into a run's folder; see `link_or_copy`."""
        link_or_copy(self.path(key, name), target)

    def facts(self, key: str) -> dict[str, Any]:
        """The facts that a finished stage recorded about itself, mainly its cost."""
        facts: dict[str, Any] = json.loads(self.path(key, "stage.json").read_text(encoding="utf-8"))
        return facts

    def digest(self, key: str, name: str) -> str:
        """SHA-256 of a file of a finished stage.

        Raises:
            RunError: The file has changed since the stage wrote it.
        """
        path = self.path(key, name)
        digest = file_digest(path)
        if digest != self.facts(key)["files"][name]:
            raise RunError(
                "the file has changed since it was computed",
                where=str(path),
                remedy=f"delete {path.parent} and run again",
            )
        return digest

    def put(self, key: str, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
        """Store a stage's output.

        Args:
            key: Its content address.
            files: Name to content.
            facts: Plain data for `facts`.

        Raises:
            RunError: It could not be written; nothing is left under the key.
        """
        temporary = self.root / f".{key}.{os.getpid()}"
        try:
            digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            stage_json = canonical({**facts, "files": digests}).encode()
            for name, content in {**files, "stage.json": stage_json}.items():
                write_file(temporary / name, content)
            if not self.has(key):
                os.replace(temporary, self.root / key)
        except OSError as error:
            # Another run may have stored the same output a moment before.
            if not self.has(key):
                raise storage_error(error, self.root / key) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the temporary folders that killed processes left behind."""
        for folder in self.root.glob(".*.*"):
            if _abandoned(folder.suffix[1:]):
                shutil.rmtree(folder, ignore_errors=True)


def sweep_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder or below it."""
    for path in folder.rglob(".*.tmp"):
        if _abandoned(path.name.split(".")[-2]):
            _remove(path)


def _abandoned(pid: str) -> bool:
    # This process writes nothing while it sweeps, so an earlier process left the files that carry its pid.
    return not (pid.isdigit() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists())


def link_or_copy(source: Path, target: Path) -> None:
    """Put a stored file into a run's folder, as a hard link if the file system allows it, otherwise as a copy.

    Raises:
        RunError: It could not be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise storage_error(error, target) from None
    finally:
        # Renaming one hard link onto another of the same file does nothing and leaves both names.
        _remove(temporary)
