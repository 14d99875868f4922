"""The description of one part as plain data: what it does, its source, its settings with their defaults."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Callable
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal

from expunge.base.references import bibtex


def describe(kind: str, part_class: Any) -> dict[str, Any]:
    """The description of one part.

    Args:
        kind: `data`, `model`, `task`, `method`, `attack`, `audit`, `diagnostic` or `study`.
        part_class: The class, or a plain function.

    Returns:
        Kind, summary, settings (name, type, default, doc), needs, cite (BibTeX) and version, as plain data.
    """
    return {
        "kind": kind,
        "summary": _summary(part_class),
        "settings": _settings(part_class),
        "needs": sorted(getattr(part_class, "needs", ())),
        "cite": "\n\n".join(bibtex(getattr(part_class, "cite", ""), where=part_class.__name__)),
        "version": getattr(part_class, "version", 1),
    }


def _summary(part_class: Any) -> str:
    """The docstring of the file if it is named after the part, otherwise the part's own docstring."""
    module = inspect.getmodule(part_class)
    *_, folder, file = ["", *(module.__name__ if module else "").replace("_", "").split(".")]
    own = inspect.getdoc(part_class) or ""
    # `methods/scrub.py` holds `Scrub`, `studies/rem/study.py` holds `RemStudy`.
    alone = part_class.__name__.lower() in (file, folder + file)
    return (inspect.getdoc(module) or own) if module and alone else own


def _settings(part_class: Any) -> list[dict[str, Any]]:
    if not (isinstance(part_class, type) and dataclasses.is_dataclass(part_class)):
        return _parameters(part_class) if callable(part_class) else []
    docs, hints = _field_docs(part_class), typing.get_type_hints(part_class, include_extras=True)
    return [
        {"name": f.name, "type": spelled_type(hints[f.name]), "default": _default(f), "doc": docs.get(f.name, "")}
        for f in dataclasses.fields(part_class)
    ]


def _parameters(function: Callable[..., Any]) -> list[dict[str, Any]]:
    given = inspect.signature(function).parameters.values()
    return [
        {"name": p.name, "type": "", "default": None if p.default is p.empty else p.default, "doc": ""}
        for p in given
        if p.kind is p.KEYWORD_ONLY
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _field_docs(part_class: type) -> dict[str, str]:
    """The string literal under each field; a derived class overrides its bases."""
    docs: dict[str, str] = {}
    for cls in reversed(part_class.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):  # a class from an interactive session has no source
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[field.target.id] = inspect.cleandoc(text.value)
    return docs


def spelled_type(hint: Any) -> str:
    """A type in short notation: `int >= 1`, `"adam" | "sgd"`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        bounds = [
            f"{sign} {bound:g}"
            for meta in arguments[1:]
            for at, sign in signs.items()
            if (bound := getattr(meta, at, None)) is not None
        ]
        return f"{spelled_type(arguments[0])} {' and '.join(bounds)}".rstrip()
    if origin is Literal:
        return " | ".join(f'"{value}"' if isinstance(value, str) else repr(value) for value in arguments)
    if origin in (typing.Union, UnionType):
        return " | ".join(map(spelled_type, arguments))
    if hint is type(None):
        return "none"
    if origin is not None:
        inner = ["..." if argument is Ellipsis else spelled_type(argument) for argument in arguments]
        return f"{origin.__name__}[{', '.join(inner)}]"
    return getattr(hint, "__name__", str(hint))
