"""The verbs about parts and this machine: list, show, cite, doctor and completion."""

from __future__ import annotations

from typing import Any

import click

from expunge.base import registry
from expunge.base.terminal import say
from expunge.cli.group import as_json, cli, print_json
from expunge.reporting.names import complete_kind, complete_name, kind_of, kinds_of

KINDS = tuple(registry.FOLDERS)


@cli.command("list")
@click.argument("kind", required=False, shell_complete=complete_kind)
@as_json
def list_(kind: str | None, json_: bool) -> None:
    """List registered parts, of all kinds or of one.

    Kinds: data, objectives, augmentations, models, blocks, tasks, methods, attacks, audits, diagnostics, monitors and
    studies.
    """
    from expunge.reporting.listing import listing, methods_table

    wanted = KINDS if kind is None else (kind_of(kind),)
    by_kind = {k: [registry.facts(k, name) for name in registry.names(k)] for k in wanted}
    if json_:
        print_json(by_kind)
        return
    for k, parts in by_kind.items():
        if parts:
            text = methods_table(parts) if wanted == ("method",) else listing(parts, whole=kind is not None)
            say(f"{registry.FOLDERS[k]}\n{text}")


@cli.command()
@click.argument("name", shell_complete=complete_name)
@as_json
def show(name: str, json_: bool) -> None:
    """Describe one part: what it does, its source, its settings with their defaults, and what it needs."""
    from expunge.reporting.describe import describe

    parts = [describe(kind, registry.load(kind, name)) for kind in kinds_of(name)]
    if json_:
        print_json(parts)
    else:
        say("\n\n".join(_shown(name, part) for part in parts))


@cli.command()
@click.argument("name", shell_complete=complete_name)
@as_json
def cite(name: str, json_: bool) -> None:
    """Print the BibTeX of a part's sources."""
    from expunge.base.references import bibtex

    parts = [registry.load(kind, name) for kind in kinds_of(name)]
    # A method and the study of its paper share a name and a source.
    entries = list(dict.fromkeys(text for part in parts for text in bibtex(getattr(part, "cite", ""), where=name)))
    if json_:
        print_json({"name": name, "bibtex": entries})
    else:
        say("\n\n".join(entries) or f"{name} has no paper of its own", error=not entries)


@cli.command()
@as_json
def doctor(json_: bool) -> None:
    """Check what this machine can run, and say what to install for the rest."""
    from expunge.reporting.doctor import examine

    checks = examine()
    if json_:
        print_json(checks)
        return
    for line in checks["checks"]:
        say(f"{'ok     ' if line['ok'] else 'missing'}  {line['what']:24} {line['found']}")
        if not line["ok"]:
            say(f"         {line['remedy']}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes verbs, options and names; save it where your shell loads completions."""
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None  # click.Choice allows exactly the three shells that Click knows
    say(completion_class(cli, {}, "expunge", "_EXPUNGE_COMPLETE").source())


def _shown(name: str, part: dict[str, Any]) -> str:
    lines = [f"{name} ({part['kind']})", "", part["summary"], ""]
    lines += [f"  {s['name']} = {s['default']!r}\n      {s['doc']}" for s in part["settings"]]
    return "\n".join([*lines, f"  needs: {', '.join(part['needs'])}"] if part["needs"] else lines)
