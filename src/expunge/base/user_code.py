"""The code of the user's own parts: the files that it is made of, and where `module:function` is found."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.machinery import all_suffixes
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError, SpecError

OURS = __package__.partition(".")[0]
_LITERAL = ("import_module", "__import__")
_LOADERS = (*_LITERAL, "run_path", "run_module", "spec_from_file_location", "exec", "walk_packages", "iter_modules")
"""Functions that load code whose name a syntax tree may not show."""
_INSTALLED = ("site-packages", "dist-packages", "node_modules", "__pycache__")
"""Folders of installed or generated code."""
_hashed: dict[Path, tuple[Any, str]] = {}
"""File of a module -> the module's spec when the file was hashed, and the digest."""
_beside: list[Path] = []
"""The one folder that `add_search_path` has put on the path."""


def source_digest(thing: Any, module: str | None = None) -> str:
    """SHA-256 of the code of a class or function: its file, and every module that this file imports.

    Imports are followed through all files below the folder in which the module was found, also imports inside
    functions. If an imported name is only known at run time, every Python file below that folder is hashed. Of
    installed packages the one file and the version are hashed; of expunge's own parts the file, for they have versions
    of their own.

    Args:
        thing: A class, a function, or any other object of a module.
        module: Name of the module that the user named, if the thing may be defined in another one.

    Returns:
        Hexadecimal digits; of no bytes if there is no such file.
    """
    sha = hashlib.sha256()
    if _is_ours(thing, module):
        sha.update(b"".join(file.read_bytes() for file in list(_named_files(thing, module).values())[:1]))
        return sha.hexdigest()
    specs = _import_specs()
    for root, paths in _followed(thing, module):
        if _is_installed(root):
            sha.update(_version(module or thing.__module__).encode())
        for path in paths:
            content = path.read_bytes()
            _refuse_stale(path, content, specs)
            sha.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return sha.hexdigest()


def code_files(thing: Any, module: str | None = None) -> list[Path]:
    """The files that `source_digest` hashes; none of expunge's own parts."""
    return [] if _is_ours(thing, module) else [path for _, paths in _followed(thing, module) for path in paths]


def _is_ours(thing: Any, module: str | None) -> bool:
    return (module or getattr(thing, "__module__", None) or "").partition(".")[0] == OURS


def _named_files(thing: Any, module: str | None) -> dict[str | None, Path]:
    """The file of the module that the user named, and of the one that defines the thing."""
    names = (module, getattr(thing, "__module__", None))
    return {name: file for name in names if (file := _file_of(thing, name)) is not None}


def _followed(thing: Any, module: str | None) -> Iterator[tuple[Path, list[Path]]]:
    """The folder in which imports are looked up, and the files of it, for each of the named files."""
    for name, file in _named_files(thing, module).items():
        root = _root(file, name)
        yield root, sorted(_closure(file, root))


def _import_specs() -> dict[str, Any]:
    """The spec of every module that Python has imported, by its file. An import or a reload makes a new one."""
    modules = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
    return {str(names["__file__"]): names.get("__spec__") for names in modules if names.get("__file__")}


def _refuse_stale(path: Path, content: bytes, specs: Mapping[str, Any]) -> None:
    """Refuse a file that has changed since Python imported it: what runs is not what is hashed.

    Raises:
        RunError: It has changed since this process hashed it first.
    """
    spec, sha = specs.get(str(path)), hashlib.sha256(content).hexdigest()
    known = _hashed.get(path)
    if spec is not None and known is not None and known[0] is spec and known[1] != sha:
        raise RunError(
            "the file has changed since Python imported it, and the old code would run",
            where=str(path),
            remedy="start Python again, or reload the module",
        )
    _hashed[path] = spec, sha


def _file_of(thing: Any, module: str | None) -> Path | None:
    """The file of a module; of a thing without a module that is loaded, the file that defines the thing."""
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        try:
            file = inspect.getsourcefile(thing)
        except (TypeError, ValueError):
            return None
    return Path(file).absolute() if file and Path(file).is_file() else None


def _root(file: Path, module: str | None) -> Path:
    """The folder in which imports of this file are looked up: the one that holds its outermost package."""
    words = (module or "").split(".")
    parts = [*file.parent.parts, *([] if file.name == "__init__.py" else [file.name.partition(".")[0]])]
    if parts[-len(words) :] == words:
        return Path(*parts[: -len(words)])
    return file.parent


@cache
def _installed_folders() -> frozenset[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = sysconfig.get_paths()
    return frozenset(Path(paths[name]).resolve() for name in names if name in paths)


def _is_installed(root: Path) -> bool:
    return root.resolve() in _installed_folders() or root.name in _INSTALLED


def _version(module: str) -> str:
    """Name and version of the distributions that an installed module comes from; empty for Python's own modules."""
    names = _distributions().get(module.partition(".")[0], [])
    return "".join(f"{name} {version(name)}\n" for name in sorted(set(names)))


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _closure(file: Path, root: Path) -> set[Path]:
    """The file and all files below `root` that it imports, at any distance."""
    if _is_installed(root):
        return {file}
    around = [folder for folder in file.parents if root in folder.parents]
    seen, waiting = set[Path](), [file, *(init for folder in around for init in _module(folder, "__init__"))]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix != ".py":
            continue
        names, open_ended = _imports(path.read_bytes())
        if open_ended:
            waiting += _python_files(root)
        for level, name in names:
            waiting += _files(path, root, level, name)
    return seen


def _python_files(folder: Path) -> Iterator[Path]:
    """Every Python file below a folder, without hidden folders and without installed packages."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in _INSTALLED and not (here / name / "pyvenv.cfg").exists()
        ]
        yield from (here / name for name in files if name.endswith(".py") and (here / name).is_file())


def _files(path: Path, root: Path, level: int, name: str) -> Iterator[Path]:
    """Files below `root` that an import statement of a file runs: of the module, and of the packages around it."""
    folder = root
    if level:
        if len(path.relative_to(root).parts) < level:
            return
        folder = path.parents[level - 1]
        yield from _module(folder, "__init__")
    for word in filter(None, name.split(".")):
        yield from _module(folder, word)
        folder = folder / word
        yield from _module(folder, "__init__")


def _module(folder: Path, name: str) -> Iterator[Path]:
    for suffix in all_suffixes():
        path = folder / f"{name}{suffix}"
        if path.is_file():
            yield path


@lru_cache(maxsize=4096)
def _imports(source: bytes) -> tuple[frozenset[tuple[int, str]], bool]:
    """Level and dotted name of every import in a file, and whether it imports what the text does not name."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return frozenset(), False  # Python cannot import it either
    except (ValueError, RecursionError, MemoryError):
        return frozenset(), True
    names, open_ended = set[tuple[int, str]](), False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # An imported name may be a module of the package.
            names |= {(node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names}
            open_ended |= any(alias.name in _LOADERS and alias.asname for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in _LOADERS:
            literal = _literal(node)
            open_ended |= literal is None
            names |= {literal} if literal else set()
    return frozenset(names), open_ended


def _literal(call: ast.Call) -> tuple[int, str] | None:
    """Level and name of a call such as `import_module("layers")`, none if the name is computed."""
    first = call.args[0] if call.args else None
    if _called(call) not in _LITERAL or not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return None
    name = first.value.lstrip(".")
    return len(first.value) - len(name), name


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def add_search_path(folder: Path) -> None:
    """Let `module:function` find modules in a folder, such as the spec's: after everything that is installed.

    A spec's folder is searched last, so that a file beside the spec never replaces an installed module. Only one folder
    is searched at a time: that of the spec that was read last.
    """
    for old in _beside:
        if old != folder and str(old) in sys.path:
            sys.path.remove(str(old))
    _beside[:] = [folder]
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def names_code(value: Any) -> bool:
    """Whether a name in a spec is `module:function`."""
    return isinstance(value, str) and ":" in value


def imported(target: str, *, where: str) -> Any:
    """The object that `module:function` names.

    Raises:
        SpecError: The module cannot be imported, or has no such object.
    """
    module, _, attribute = target.partition(":")
    try:
        thing: Any = importlib.import_module(module)
        for step in attribute.split("."):
            thing = getattr(thing, step)
    except (Exception, SystemExit) as error:  # the user's module may fail in any way, for example with a syntax error
        hidden = _hidden(module.partition(".")[0])
        raise SpecError(
            f"cannot import {target!r} ({type(error).__name__}: {error})",
            where=where,
            allowed="module:function, with the module beside the spec file or installed",
            remedy=f"rename {hidden[0]}: an installed module has its name" if hidden else "",
        ) from None
    return thing


def failed(target: str, error: BaseException) -> SpecError:
    """The error for a function of the user's that failed: what it raised, and the last line of the user's own code."""
    steps = traceback.extract_tb(error.__traceback__)
    file = str(_file_of(None, target.partition(":")[0]))
    lines = [step.lineno for step in steps if step.filename == file]
    place = f" in line {lines[-1]} of {file}" if lines else ""
    finding = f"it failed{place} ({type(error).__name__}: {error})"
    return SpecError(finding, where=target, remedy="call it in Python to see the whole traceback")


def refuse_hidden(target: str, *, where: str) -> None:
    """Refuse a file beside the spec if its name is imported and Python finds another module under this name.

    Args:
        target: `module:function`, already imported.
        where: Place of the name in the spec, for messages.

    Raises:
        SpecError: There is such a file.
    """
    module = target.partition(":")[0]
    top, file = module.partition(".")[0], _file_of(None, module)
    names = {top}
    if file is not None and any(folder in file.parents for folder in _beside):
        names |= _top_levels(file, module)
    for name in sorted(names):
        hidden = _hidden(name)
        if hidden:
            raise SpecError(
                f"{name!r} is {hidden[1]}, not {hidden[0]}",
                where=where,
                allowed="names that no installed or imported module has",
                remedy="rename the file beside the spec",
            )


def _top_levels(file: Path, module: str) -> set[str]:
    """First words of all modules that a file imports, at any distance."""
    python = [path for path in _closure(file, _root(file, module)) if path.suffix == ".py"]
    return {name.partition(".")[0] for path in python for level, name in _imports(path.read_bytes())[0] if not level}


def _hidden(name: str) -> tuple[Path, str] | None:
    """A file beside the spec with this module name, and the module that Python finds instead; none if there is none."""
    paths = [path for folder in _beside for path in (folder / f"{name}.py", folder / name / "__init__.py")]
    present = [path for path in paths if path.is_file()]
    if not present or not name:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    origin = spec.origin if spec is not None else None
    if spec is None or any(origin and Path(origin).resolve() == path.resolve() for path in present):
        return None
    return present[0], origin or "a built-in module"
