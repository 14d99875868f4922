"""Text for the terminal: the table of verdicts, the table of costs, and the description of one part."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal

from expunge.base.references import bibtex
from expunge.evidence.table import Table
from expunge.evidence.verdict import Verdict

WIDTH = 100
REASONS = 2
"""Reasons per method in the terminal; the page has all of them."""
ROUNDING = 1e-7
"""Weights and losses are in single precision, so smaller values are shown as 0."""
Row = dict[str, Any]
Columns = dict[str, tuple[str | None, tuple[str, str]]]
"""Heading -> (attack, (metric, split))."""


def verdict_table(table: Table, verdicts: Sequence[Verdict]) -> str:
    """The result of a run, in 100 columns.

    Args:
        table: The run's table.
        verdicts: One per method.

    Returns:
        A line per model with the mean over seeds and the half-width of its 90 % interval, then each method's verdict
        with its first reasons.
    """
    rows = over_seeds(table)
    columns = columns_of(table)
    headlines = {verdict.model: verdict.verdict for verdict in verdicts}
    cells = {model: [cell(rows.get((model, *column))) for column in columns.values()] for model in table.models}
    headings, left_out = list(columns), []
    for least in ("L2", "retain", "test"):
        if _width(headings, cells, headlines) > WIDTH and least in headings:
            place = headings.index(least)
            left_out.append(headings.pop(place))
            cells = {model: [*row[:place], *row[place + 1 :]] for model, row in cells.items()}
    lines = _aligned(
        [["model", *headings, "verdict"]]
        + [[model, *row, headlines.get(model, "")] for model, row in cells.items() if any(row)]
    )
    lines[1:1] = ["-" * max(map(len, lines))]
    note = f"Mean over {counted(len(table.seeds), 'seed')} ± half its 90 % interval; shares of examples in %."
    lines += ["", *textwrap.wrap(note + (f" Not shown: {', '.join(left_out)}." if left_out else ""), WIDTH)]
    for verdict in verdicts:
        lines += ["", *_verdict_lines(verdict)]
    return "\n".join(lines)


def over_seeds(table: Table) -> dict[tuple[str, str | None, tuple[str, str]], Row]:
    """The rows over seeds by model, attack and (metric, split). A single model keeps its interval over examples."""
    means: dict[tuple[str, str | None, tuple[str, str]], Row] = {}
    for row in table.rows():
        place = row["model"], row["attack"], (row["metric"], row["split"])
        if row["seed"] is None and row["n"] == 1 and place in means:
            means[place] |= {"seed": None, "gap": row["gap"], "alone": True}
        else:
            means[place] = row
    return means


def columns_of(table: Table) -> Columns:
    """The columns of the short table: knowledge of the forget set before and after each attack, utility, and L2."""
    forget = knowledge_key(table)
    columns: Columns = {"forget": (None, forget)}
    columns |= {f"after {attack}": (attack, forget) for attack in table.attacks}
    useful = utility_metric(table)
    further = {"retain": (useful, "retain"), "test": (useful, "test"), "L2": ("l2_distance", "weights")}
    return columns | {heading: (None, key) for heading, key in further.items() if key in table.keys}


def knowledge_key(table: Table) -> tuple[str, str]:
    """Metric and split of the knowledge that every verdict requires: the first such metric that was measured."""
    required = [m.scores.key for m in table.measured if m.scores.required]
    return required[0] if required else ("accuracy", "forget")


def utility_metric(table: Table) -> str:
    """The metric whose value on the test set is utility."""
    return utility_key(table)[0]


def utility_key(table: Table) -> tuple[str, str]:
    """Metric and split of the first utility that was measured over all labels."""
    utilities = [m.scores.key for m in table.measured if m.scores.role == "utility" and m.scores.label is None]
    return utilities[0] if utilities else ("accuracy", "test")


def cell(row: Row | None) -> str:
    """A value and the half-width of its interval, empty if nothing was measured."""
    if row is None:
        return ""
    half = (row["high"] - row["low"]) / 2
    value = shown(row["value"], row["unit"])
    if math.isnan(half):
        return value
    return f"{value} ±{shown(half, 'share')}" if row["unit"] == "share" else f"{value} ±{half:.2g}"


def shown(value: float, unit: str) -> str:
    """A share in per cent with one decimal, any other value with three digits."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "share":
        return f"{100 * value:.1f}"
    return f"{0.0 if abs(value) < ROUNDING else value:.3g}"


def costs_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """The cost of each kind of stage.

    Args:
        costs: Name -> stages, seconds and gradients, as `RunResult.costs`; unknown gradients are NaN.

    Returns:
        A line per kind; for methods with the cost of one run as a share of a retraining's gradients.
    """
    retraining = _each(costs.get("reference", {}), "gradients")
    lines = [["stage", "times", "seconds", "gradients", "of retraining"]]
    for name, entry in costs.items():
        share = _each(entry, "gradients") / retraining if retraining and name.startswith("unlearn") else math.nan
        lines.append(
            [
                name,
                f"{entry['stages']:.0f}",
                f"{entry['seconds']:.1f}",
                f"{entry['gradients']:,.0f}" if entry["gradients"] > 0 else "-",
                "" if math.isnan(share) else percent(share),
            ]
        )
    return "\n".join(_aligned(lines))


def percent(share: float) -> str:
    """A share of a cost in per cent, with the two digits that a comparison needs."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _each(entry: Mapping[str, float], what: str) -> float:
    return entry[what] / entry["stages"] if entry.get("stages") else 0.0


def _verdict_lines(verdict: Verdict) -> list[str]:
    lines = [f"{verdict.model}: {', '.join(verdict.flags)}"]
    for reason in verdict.reasons[:REASONS]:
        lines += textwrap.wrap(reason, WIDTH, initial_indent="  ", subsequent_indent="    ")
    more = len(verdict.reasons) - REASONS
    return [*lines, f"  and {counted(more, 'more reason')} in the report"] if more > 0 else lines


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *rest = widths
    out = []
    for line in lines:
        name, *cells = line
        words = [name.ljust(first)]
        for word, width in zip(cells, rest, strict=True):
            # The last column of the verdicts is text, the others are numbers.
            words.append(word.ljust(width) if lines[0][-1] == "verdict" and word is cells[-1] else word.rjust(width))
        out.append("  ".join(words).rstrip())
    return out


def _width(headings: list[str], cells: dict[str, list[str]], headlines: dict[str, str]) -> int:
    lines = [["model", *headings, "verdict"]] + [[m, *row, headlines.get(m, "")] for m, row in cells.items()]
    return max(map(len, _aligned(lines)))


def counted(count: int, what: str, plural: str = "") -> str:
    """The number with its noun; without a given plural the noun takes an s."""
    return f"{count} {what if count == 1 else plural or what + 's'}"


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
