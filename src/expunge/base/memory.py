"""A store of stages' outputs in memory, with the interface of `store.Store`; notebooks use it instead of a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.base.record import write_file


@dataclass(frozen=True, eq=False)
class MemoryStore:
    """Outputs by content address; they are freed with the store object."""

    _files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        """Whether the stage with this key has finished and none of its files was dropped."""
        return key in self._facts and self._facts[key]["files"].keys() == self._files[key].keys()

    def fault(self, key: str, names: Iterable[str] | None = None) -> str | None:
        """`None` if the output is there, otherwise the empty string: memory is never damaged."""
        return None if self.has(key) else ""

    def read(self, key: str, name: str) -> bytes:
        """The content of a file of a finished stage."""
        return self._files[key][name]

    def place(self, key: str, name: str) -> str:
        """Place of a file of a finished stage, for messages."""
        return f"{name} of stage {key}"

    def facts(self, key: str) -> dict[str, Any]:
        """The facts that a finished stage recorded about itself, mainly its cost."""
        return self._facts[key]

    def digest(self, key: str, name: str) -> str:
        """SHA-256 of a file of a finished stage."""
        digest: str = self._facts[key]["files"][name]
        return digest

    def put(self, key: str, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
        """Store a stage's output."""
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self._files[key], self._facts[key] = dict(files), {**facts, "files": digests}

    def drop(self, key: str, name: str) -> None:
        """Free a large file that nothing reads any more; from then on `has` is false for the stage."""
        self._files.get(key, {}).pop(name, None)

    def keep(self, key: str, name: str, target: Path) -> None:
        """Write a stored file to a run's folder.

        Raises:
            RunError: It could not be written.
        """
        write_file(target, self.read(key, name))
