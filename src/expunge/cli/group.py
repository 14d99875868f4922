"""The group that verbs join, the options that several verbs share, and how JSON is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from expunge.base.record import spelled
from expunge.base.terminal import say

spec_argument = click.argument("spec", type=click.Path(path_type=Path))
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder for runs."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value of the spec; repeatable."
)
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="Number of parallel processes; by default one per core."
)
executor_option = click.option(
    "--on",
    metavar="NAME",
    help="Executor that runs the tasks: inline, processes, one of another package, or module:Class.",
)
as_json = click.option("--json", "json_", is_flag=True, help="Print JSON on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="expunge")
def cli() -> None:
    """Remove what a trained neural network has learned, and show whether it is really gone.

    Exit codes: 0 done, 1 a declared gate failed, 2 bad spec or usage, 3 a prerequisite is missing, 4 the run failed,
    130 interrupted.
    """


def print_json(value: Any) -> None:
    """Print a value of plain data as JSON on stdout."""
    say(json_text(value))


def json_text(value: Any) -> str:
    """A value of plain data as JSON; numbers that are not finite are spelled as text."""
    return json.dumps(spelled(value), indent=1, allow_nan=False)
