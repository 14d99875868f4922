"""What import-linter does not hold: private modules stay private, the command line is light, class names are unique."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import expunge

SOURCE = Path(expunge.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
SHARED_NAMES = {"People", "Sharpness"}
"""Registered parts of two kinds: `sharpness` is a diagnostic and a monitor, `people` a data set and a task."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def package_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE.parent).parent.parts)


def imported(source: str) -> Iterator[str]:
    """Full names of what a file imports of expunge, modules and what is in them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("expunge"))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("expunge."))


def foreign_privates(source: str, package: str) -> list[str]:
    """Imported names that are private to a package that the file is not in."""
    found = []
    for name in imported(source):
        parts = name.split(".")
        private = next((place for place, part in enumerate(parts) if part.startswith("_")), None)
        owner = ".".join(parts[:private])
        if private is not None and not f"{package}.".startswith(f"{owner}.") and not parts[private].endswith("__"):
            found.append(name)
    return found


def test_no_package_imports_a_private_module_of_another() -> None:
    offenders = [(module_of(f), name) for f in FILES for name in foreign_privates(f.read_text(), package_of(f))]
    assert not offenders, "rename the module, or export what is used from its package"


def test_a_private_import_is_seen() -> None:
    for line in (
        "from expunge.a._x import y",
        "import expunge.a._x",
        "from expunge.a import _x",
        "import expunge.a._x.z",
    ):
        assert foreign_privates(line, "expunge.b"), line
        assert foreign_privates(f"def f():\n    {line}", "expunge"), line
        assert not foreign_privates(line, "expunge.a"), line
        assert not foreign_privates(line, "expunge.a.inner"), line
    assert not foreign_privates("from expunge import __version__\nfrom torch.nn import _x", "expunge.b")


def test_the_command_line_imports_neither_torch_nor_the_pipeline() -> None:
    code = "import sys, expunge.cli; print(*sorted({'torch', 'scipy', 'expunge.pipeline'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_class_names_are_unique() -> None:
    """A name in a message or a traceback says which class it is."""
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module_of(file))
    shared = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert shared.keys() == SHARED_NAMES, shared
    for name in SHARED_NAMES:
        assert {module.rpartition(".")[2] for module in shared[name]} == {name.lower()}
