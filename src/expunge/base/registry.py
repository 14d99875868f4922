"""What there is, found by looking: a file in a folder, an entry point of another package, or `module:function`.

The file's name is the registered name, and the part in it is the class whose name is the same without underscores
(`random_relabel.py` holds `RandomRelabel`). Files that begin with an underscore are helpers. A study is a folder: its
name is the registered name, and `study.py` in it holds the class with `Study` at its end (`rem/study.py` holds
`RemStudy`). Nothing is imported until it is used; names and summaries come from the file system and the syntax tree.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from expunge.base.errors import SpecError, unknown
from expunge.base.part import Part, source_digest

FOLDERS = {
    "data": "data",
    "objective": "objectives",
    "augmentation": "augmentations",
    "model": "models",
    "block": "blocks",
    "task": "tasks",
    "method": "methods",
    "attack": "attacks",
    "audit": "audits",
    "diagnostic": "diagnostics",
    "monitor": "monitors",
    "study": "studies",
}
"""Kind of part to the folder of the package that holds it; entry points use the group `expunge.<folder>`."""
IN_FOLDERS = frozenset({"study"})
"""Kinds of which a part is a folder, with a file named like the kind in it."""

_PLACES = {"monitor": "train/monitors"}
"""Folders that lie inside another one."""
INSIDE = {"stage": "pipeline/stages", "executor": "pipeline/executors"}
"""Kinds that no spec names and no list shows, of which a run is made; their classes end in the kind."""

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class FunctionPart(Part):
    """A user's plain function, named as `module:function`, standing where a part is expected.

    Called with the positional arguments of its kind's contract, if it takes any, and the table's settings as keywords.
    """

    # A function has none of the facts that classes declare; these are what the pipeline then takes for granted.
    measures: ClassVar[bool] = False
    after_attack: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()
    repeatable: ClassVar[bool] = True
    shadow_pairs: ClassVar[int] = 0
    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def repeats(self, data: Any) -> bool:
        """Of a diagnostic: it runs on every seed's original."""
        return True

    def summary(self, estimates: Mapping[str, Any]) -> str:
        """Of a diagnostic: it has no sentence."""
        return ""

    target: str
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Any]:
        found: Callable[..., Any] = _import(self.target, where=self.target)
        return found

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments, **self.keywords)

    def settings(self) -> dict[str, Any]:
        return dict(self.keywords)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "target": self.target, "code": source_digest(self.function)}


def names(kind: str) -> list[str]:
    """Every registered name of a kind, sorted; a built-in file wins over an entry point of the same name."""
    return sorted({*_files(kind), *_entry_points(kind)})


def load(kind: str, name: str, *, where: str = "") -> Any:
    """The class (or, for `module:function`, the object) behind a name.

    Args:
        kind: One of `FOLDERS`.
        name: A registered name, or `module:function`.
        where: Place of the name in the spec, for messages.

    Returns:
        The class or object.

    Raises:
        SpecError: There is no such name, or what it names cannot be imported.
    """
    where = where or kind
    if ":" in name:
        return _import(name, where=where)
    if name in _files(kind):
        module = f"expunge.{_folder(kind).replace('/', '.')}.{name}"
        if kind in IN_FOLDERS:
            return _class_in(importlib.import_module(f"{module}.{kind}"), name + kind)
        return _class_in(importlib.import_module(module), name if kind in FOLDERS else name + kind)
    if name in _entry_points(kind):
        return _entry_points(kind)[name].load()
    raise unknown(kind, name, names(kind), where=where)


def build(kind: str, name: str, settings: Mapping[str, Any], *, where: str, folder: Path | None = None) -> Part:
    """The part that a spec's table describes.

    Args:
        kind: One of `FOLDERS`.
        name: A registered name, or `module:function`.
        settings: The table without its name.
        where: Its place in the spec, for messages.
        folder: What relative paths in the settings count from.

    Returns:
        A part; for a plain function a `FunctionPart`.

    Raises:
        SpecError: Unknown name, unknown key or a value that does not fit.
    """
    loaded = load(kind, name, where=f"{where}.name")
    if isinstance(loaded, type) and issubclass(loaded, Part):
        return loaded.from_table(settings, where=where, folder=folder)
    return build_function(name, settings, where=where)


def build_function(target: str, settings: Mapping[str, Any], *, where: str) -> FunctionPart:
    """The part that a plain function stands for.

    Args:
        target: `module:function`.
        settings: Keyword arguments for it.
        where: Its table's place in the spec, for messages.

    Raises:
        SpecError: It cannot be imported or called, or has no argument of a setting's name.
    """
    function = _import(target, where=f"{where}.name")
    if not callable(function):
        raise SpecError(f"{target!r} is not callable", where=f"{where}.name", allowed="a function or a Part")
    _check_keywords(function, settings, where)
    return FunctionPart(target=target, keywords=dict(settings))


def summary(kind: str, name: str) -> str:
    """The first line of a part's docstring, read without importing the part."""
    if name in _files(kind):
        tree = ast.parse(_files(kind)[name].read_text(encoding="utf-8"))
        return (ast.get_docstring(tree) or "").partition("\n")[0]
    return f"from {_entry_points(kind)[name].value}"


def facts(kind: str, name: str) -> dict[str, Any]:
    """What a part's file says of it without being imported: summary, paper with its year, needs, cost and effort.

    Returns:
        Texts, empty where the file says nothing; the year is a number, or none. `effort` is the cost in short.
    """
    told = dict.fromkeys(("paper", "needs", "effort"), "")
    found: dict[str, Any] = {"name": name, "summary": summary(kind, name), "year": None, "cost": "", **told}
    if name not in _files(kind):
        return found
    tree = ast.parse(_files(kind)[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.AnnAssign) and isinstance(target, ast.Name) and target.id in told:
            words = [c.value for c in ast.walk(node.value or node) if isinstance(c, ast.Constant)]
            found[target.id] = ", ".join(map(str, words))
    paper, _, year = found["paper"].rpartition(", ")
    found |= {"paper": paper, "year": int(year)} if year.isdigit() else {}
    _, _, cost = (ast.get_docstring(tree) or "").partition("Cost: ")
    found["cost"] = " ".join(cost.partition("\n\n")[0].split())
    return found


def kinds_of(name: str) -> list[str]:
    """The kinds under which a name is registered."""
    return [kind for kind in FOLDERS if name in names(kind)]


@cache
def _files(kind: str) -> dict[str, Path]:
    folder = _PACKAGE / _folder(kind)
    if kind in IN_FOLDERS:
        return {path.parent.name: path for path in folder.glob(f"*/{kind}.py")}
    return {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    group = f"expunge.{_folder(kind).rpartition('/')[2]}"
    return {point.name: point for point in entry_points(group=group)}


def _folder(kind: str) -> str:
    """Where files of a kind lie in the package."""
    if kind not in FOLDERS | INSIDE:
        raise unknown("kind", kind, FOLDERS, where="registry")
    return (FOLDERS | INSIDE | _PLACES)[kind]


def _class_in(module: Any, name: str) -> Any:
    wanted = name.replace("_", "")
    for attribute, value in vars(module).items():
        if attribute.lower() == wanted and isinstance(value, type):
            return value
    raise TypeError(f"{module.__name__} defines no class of that name ({wanted!r}, in any case)")


def _check_keywords(function: Callable[..., Any], settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings that the function has no argument for, where its signature can be read."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in settings:
        if key not in named:
            raise unknown("key", key, named, where=where)


def _import(target: str, *, where: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for step in attribute.split("."):
            found = getattr(found, step)
    except Exception as error:  # the user's module may fail in any way, a syntax error first of all
        raise SpecError(
            f"cannot import {target!r} ({type(error).__name__}: {error})",
            where=where,
            allowed="module:function, with the module beside the spec file or installed",
        ) from None
    return found


def add_search_path(folder: Path) -> None:
    """Let `module:function` find modules that lie beside the spec file."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
