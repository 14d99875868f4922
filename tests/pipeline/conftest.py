"""Another package that extends this one, installed in a folder of the test's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from expunge.base import registry
from expunge.pipeline.stage_kind import kind_of

Install = Callable[[str, dict[str, str]], None]
"""Takes the text of `another_package.py`, and the group of each class that is an entry point, named like it."""


def forget_names() -> None:
    registry._entry_points.cache_clear()
    kind_of.cache_clear()


def point(name: str) -> str:
    return f"{name.lower()} = another_package:{name}"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package of one file, for this process and those that it starts."""
    folder = tmp_path / "site"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    def write(text: str, points: dict[str, str]) -> None:
        info = folder / "another_package-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "another_package.py").write_text(text)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another-package\nVersion: 1.0\n")
        groups = {group: [name for name in points if points[name] == group] for group in points.values()}
        lines = [f"[{group}]\n" + "\n".join(map(point, names)) for group, names in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        forget_names()

    yield write
    sys.modules.pop("another_package", None)
    forget_names()
