"""Reference pages, generated from the registry, the command line and docstrings when MkDocs builds the site."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import click

import expunge
import expunge.api
import expunge.numerics
from expunge.base import registry
from expunge.cli import cli
from expunge.reporting.describe import describe
from expunge.reporting.listing import paper_of

TABLE = re.compile(r"<!-- table: (\w+) -->")


def pages() -> dict[str, str]:
    """Every generated page: its path below `docs/` and its Markdown."""
    texts = {"reference/cli.md": command_line(), "reference/python.md": python(), "reference/numerics.md": numerics()}
    for kind, folder in registry.FOLDERS.items():
        if registry.names(kind):
            texts[f"reference/{folder}.md"] = parts(kind, folder)
    return texts


def parts(kind: str, folder: str) -> str:
    """All parts of one kind."""
    single = {"data": "[data]", "model": "[model]", "task": "[forget]", "objective": "[objective]"}
    place = (single | {"block": "[[model.block]]"}).get(kind, f"[[{kind}]]")
    use = "For `expunge study NAME`" if kind == "study" else f"For `{place}` in a spec"
    lead = f"{use}; `expunge show NAME` prints the same."
    return "\n\n".join([f"# {folder.capitalize()}", lead, *(part(kind, name) for name in registry.names(kind))]) + "\n"


def part(kind: str, name: str) -> str:
    """One part: what it does, its settings, its needs and its paper."""
    description = describe(kind, registry.load(kind, name))
    facts = registry.facts(kind, name)
    blocks = [f"## {name}", text(description["summary"])]
    if description["settings"]:
        settings = description["settings"]
        rows = [(f"`{s['name']}`", text(s["type"]), default(s["default"]), text(s["doc"])) for s in settings]
        blocks.append(table(("setting", "type", "default", "meaning"), rows))
    if description["needs"]:
        blocks.append(f"**Needs:** {', '.join(description['needs'])}.")
    if paper := paper_of(facts):
        blocks.append(f"**Paper:** {paper}.")
    if description["cite"]:
        blocks.append(f"```bibtex\n{description['cite']}\n```")
    return "\n\n".join(blocks)


def overview(kind: str) -> str:
    """A kind's parts in one table, each with a link to its reference."""
    facts = [registry.facts(kind, name) for name in registry.names(kind)]
    link = f"reference/{registry.FOLDERS[kind]}.md"
    rows = [
        (f"[`{f['name']}`]({link}#{f['name']})", *map(text, (f["summary"], paper_of(f), f["needs"], f["cost"])))
        for f in facts
    ]
    return table(("name", "what it does", "paper", "needs", "cost"), rows)


def command_line() -> str:
    """Every verb with its arguments and options."""
    assert isinstance(cli, click.Group)
    blocks = ["# Command line", text(inspect.cleandoc(cli.help or ""))]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"expunge {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        blocks += [f"## expunge {name}", f"```text\n{usage}\n```", text(command.help or "")]
        options = [o for o in command.params if isinstance(o, click.Option)]
        rows = [record for option in options if (record := option.get_help_record(context))]
        if rows:
            blocks.append(table(("option", "meaning"), [(f"`{names}`", text(meaning)) for names, meaning in rows]))
    return "\n\n".join(blocks) + "\n"


def python() -> str:
    """The notebook path: signatures and docstrings."""
    blocks = [
        "# Python",
        text("The notebook path, on a model of your own; see [your own model](../own-model.md).").replace("\\[", "["),
    ]
    for name in sorted(expunge.__all__):
        value = getattr(expunge, name)
        kind = "class " if isinstance(value, type) else ""
        head = f"{kind}expunge.{name}{'' if kind else signature(value)}"
        blocks += [f"## {name}", f"```python\n{head}\n```", f"```text\n{inspect.getdoc(value)}\n```"]
        if kind:
            blocks += [member(*item) for item in vars(value).items() if not item[0].startswith("_")]
    return "\n\n".join(block for block in blocks if block) + "\n"


def numerics() -> str:
    """The numerical core, one section a file: what it computes, then its functions and classes."""
    blocks = [
        "# Numerics",
        "Tensors in, tensors out; for use with any PyTorch module. Import from `expunge.numerics.FILE`.",
    ]
    for entry in sorted(pkgutil.iter_modules(expunge.numerics.__path__), key=lambda module: module.name):
        if not entry.name.startswith("_"):
            module = importlib.import_module(f"expunge.numerics.{entry.name}")
            blocks += [f"## {entry.name}", f"```text\n{inspect.getdoc(module)}\n```"]
            for name, value in public(module).items():
                head = f"{name}{'' if isinstance(value, type) else signature(value)}"
                blocks += [f"### {name}", f"```python\n{head}\n```", f"```text\n{inspect.getdoc(value)}\n```"]
                if isinstance(value, type):
                    blocks += [member(*item) for item in vars(value).items() if not item[0].startswith("_")]
    return "\n\n".join(block for block in blocks if block) + "\n"


def public(module: ModuleType) -> dict[str, Any]:
    """The public functions and classes of a module: those in `__all__`, or else those that it defines."""
    listed = getattr(module, "__all__", None)
    own = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__]
    named = {name: getattr(module, name) for name in (own if listed is None else listed)}
    return {name: value for name, value in named.items() if callable(value)}


def signature(function: Any) -> str:
    """A function's arguments, one a line, annotations as they were written."""
    plain = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    return re.sub(r", (?=\*|\w+: )", ",\n    ", plain)


def member(name: str, value: Any) -> str:
    """A public method or property of a class as one line."""
    doc = inspect.getdoc(value) if callable(value) or isinstance(value, property) else None
    return f"**`{name}`**: {text(doc.partition('.')[0])}." if doc else ""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *(tuple(map(one_line, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def one_line(value: str) -> str:
    """The text as a table cell can hold it."""
    return " ".join(value.split()).replace("|", "\\|")


def text(value: str) -> str:
    """Prose with `*`, `_`, `<` and `[` escaped outside of code, so that formulas are shown as they were written."""
    pieces = re.split(r"(`[^`]*`)", value)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<\[])", r"\\\1", p) for p in pieces)


def default(value: Any) -> str:
    """A default as TOML spells it; empty where there is none."""
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value!r}`"


def on_files(files: Any, config: Any) -> Any:
    """MkDocs: add the generated pages."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs: put tables where a page asks for them."""
    return TABLE.sub(lambda match: overview(match[1]), markdown)
