"""Finds parts by name: a file in a folder, an entry point of another package, or `module:function`.

The file's name is the registered name. The part in it is the class with the same name without underscores:
`random_relabel.py` holds `RandomRelabel`. Files that begin with an underscore are helpers. A study is a folder: the
folder's name is the registered name, and its `study.py` holds the class that ends in `Study`: `rem/study.py` holds
`RemStudy`. Nothing is imported until it is used; names and summaries come from the file system and the syntax tree.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from expunge.base.errors import ExpungeError, SpecError, unknown
from expunge.base.part import Part
from expunge.base.user_code import code_files, failed, imported, refuse_hidden, source_digest

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
"""Kinds whose parts are folders; the folder holds a file with the kind's name."""

_PLACES = {"monitor": "train/monitors"}
"""Kinds whose folder is inside another folder of the package."""
INSIDE = {"stage": "pipeline/stages", "executor": "pipeline/executors"}
"""Internal kinds of the pipeline: no spec names them and no list shows them. Their class names end in the kind."""

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class FunctionPart(Part):
    """A user's plain function, named as `module:function`, used as a part.

    It is called with the positional arguments of its kind's contract, and with the table's settings as keywords.
    """

    # A function declares few facts, as its own attributes; for the others the pipeline uses these defaults.
    measures: ClassVar[bool] = False
    after_attack: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()
    repeatable: ClassVar[bool] = True
    shadow_pairs: ClassVar[int] = 0
    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @property
    def trains(self) -> bool:
        """Of an attack: the function says `attack.trains = True`."""
        return getattr(self.function, "trains", False) is True

    @property
    def control(self) -> bool:
        """Of an attack: the function says `attack.control = True`."""
        return getattr(self.function, "control", False) is True

    def repeats(self, data: Any) -> bool:
        """Of a diagnostic: it runs on every seed's original."""
        return True

    def summary(self, estimates: Mapping[str, Any]) -> str:
        """Of a diagnostic: it has no sentence."""
        return ""

    def proposal(self, estimates: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Of a diagnostic: it recommends no method."""
        return []

    target: str
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    returns: Any = dataclasses.field(default=object, compare=False)
    """What the function must return: a class, or a tuple of classes."""

    @property
    def function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = imported(self.target, where=self.target)
        return function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function.

        Raises:
            SpecError: The function fails, or it does not return what its kind of part returns.
        """
        try:
            result = self.function(*arguments, **self.keywords)
        except ExpungeError:
            raise
        except (Exception, SystemExit) as error:  # the user's function may fail in any way
            raise failed(self.target, error) from error
        if not isinstance(result, self.returns):
            classes = self.returns if isinstance(self.returns, tuple) else (self.returns,)
            allowed = " or ".join(item.__name__ for item in classes)
            raise SpecError(f"it returned {type(result).__name__}", where=self.target, allowed=allowed)
        return result

    def settings(self) -> dict[str, Any]:
        return dict(self.keywords)

    def code_files(self) -> list[Path]:
        return code_files(self.function, self.target.partition(":")[0])

    def fingerprint(self) -> dict[str, Any]:
        code = source_digest(self.function, self.target.partition(":")[0])
        return {**super().fingerprint(), "target": self.target, "code": code}


def names(kind: str) -> list[str]:
    """Every registered name of a kind, sorted; a built-in file wins over an entry point of the same name."""
    return sorted({*_files(kind), *_entry_points(kind)})


def load(kind: str, name: str, *, where: str = "") -> Any:
    """The class with a registered name, or the object that `module:function` names.

    Args:
        kind: One of `FOLDERS`.
        name: A registered name, or `module:function`.
        where: Place of the name in the spec, for messages.

    Returns:
        The class or object.

    Raises:
        SpecError: The name is unknown, or its module cannot be imported.
    """
    where = where or kind
    if ":" in name:
        thing = imported(name, where=where)
        refuse_hidden(name, where=where)
        return thing
    if name in _files(kind):
        module = f"expunge.{_folder(kind).replace('/', '.')}.{name}"
        if kind in IN_FOLDERS:
            return _class_in(importlib.import_module(f"{module}.{kind}"), name + kind)
        return _class_in(importlib.import_module(module), name if kind in FOLDERS else name + kind)
    if name in _entry_points(kind):
        return _entry_points(kind)[name].load()
    error = unknown(kind, name, names(kind), where=where)
    named = (kind in FOLDERS and kind not in IN_FOLDERS) or kind == "executor"
    yours = ", or your own code as module:function" if named else ""
    raise SpecError(error.finding, where=where, allowed=f"{error.allowed}{yours}", remedy=error.remedy)


def build(kind: str, name: str, settings: Mapping[str, Any], *, where: str, folder: Path | None = None) -> Part:
    """The part that a spec's table describes.

    Args:
        kind: One of `FOLDERS`.
        name: A registered name, or `module:function`.
        settings: The table without its name.
        where: The table's place in the spec, for messages.
        folder: Where relative paths in the settings start.

    Returns:
        A part; for a plain function a `FunctionPart`.

    Raises:
        SpecError: The name or a key is unknown, or a value has the wrong type or range.
    """
    loaded = load(kind, name, where=f"{where}.name")
    if isinstance(loaded, type) and issubclass(loaded, Part):
        return loaded.from_table(settings, where=where, folder=folder)
    return build_function(name, settings, where=where)


def build_function(target: str, settings: Mapping[str, Any], *, where: str) -> FunctionPart:
    """The part that wraps a plain function.

    Args:
        target: `module:function`.
        settings: Keyword arguments for the function.
        where: The table's place in the spec, for messages.

    Raises:
        SpecError: The function cannot be imported or called, or it has no argument with a setting's name.
    """
    function = imported(target, where=f"{where}.name")
    refuse_hidden(target, where=f"{where}.name")
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
    """Facts about a part, read from its file without importing it: summary, paper, year, needs, cost, effort, stronger.

    Returns:
        Texts, empty if the file does not give them; the year is a number, or none. `effort` is the cost in short form,
        `stronger` a setting and a factor.
    """
    declared = dict.fromkeys(("paper", "needs", "effort", "stronger"), "")
    table: dict[str, Any] = {"name": name, "summary": summary(kind, name), "year": None, "cost": "", **declared}
    if name not in _files(kind):
        return table
    tree = ast.parse(_files(kind)[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.AnnAssign) and isinstance(target, ast.Name) and target.id in declared:
            words = [c.value for c in ast.walk(node.value or node) if isinstance(c, ast.Constant)]
            table[target.id] = ", ".join(map(str, words))
    paper, _, year = table["paper"].rpartition(", ")
    table |= {"paper": paper, "year": int(year)} if year.isdigit() else {}
    _, _, cost = (ast.get_docstring(tree) or "").partition("Cost: ")
    table["cost"] = " ".join(cost.partition("\n\n")[0].split())
    return table


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
    """The folder of the package that holds a kind."""
    if kind not in FOLDERS | INSIDE:
        raise unknown("kind", kind, FOLDERS, where="registry")
    return (FOLDERS | INSIDE | _PLACES)[kind]


def _class_in(module: Any, name: str) -> Any:
    wanted = name.replace("_", "")
    for attribute, value in vars(module).items():
        if attribute.lower() == wanted and isinstance(value, type):
            return value
    raise TypeError(f"{module.__name__} defines no class named {wanted!r}, in upper or lower case")


def _check_keywords(function: Callable[..., Any], settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings that are no arguments of the function, if its signature can be read."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    arguments = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in settings:
        if key not in arguments:
            raise unknown("key", key, arguments, where=where)
