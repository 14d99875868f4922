"""The verbs that read records: verify, report, compare and clean. They need no torch."""

from __future__ import annotations

from pathlib import Path

import click

from expunge.base.reading import consistent
from expunge.base.terminal import say
from expunge.cli.group import as_json, cli, json_text, out_option, print_json


@cli.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@as_json
def verify(folder: Path, json_: bool) -> None:
    """Recompute every digest, estimate and verdict of a run from its stored scores; needs no torch.

    RUN may also be a folder of a model that `--save` wrote; then the digests of its files are checked.
    """
    from expunge.base.model_folder import is_model_folder, verify_folder
    from expunge.reporting.verify import verify as verify_run

    if is_model_folder(folder):
        checked = verify_folder(folder)
        if json_:
            print_json({"model": str(folder), "status": "verified", **checked})
        else:
            say(f"{folder}: {checked['digests']} digests agree")
        return
    checked = verify_run(folder)
    if json_:
        print_json({"run": str(folder), "status": "verified", **checked})
    else:
        say(f"{folder}: " + ", ".join(f"{count} {what}" for what, count in checked.items()) + " agree")
    if "verdicts" not in checked:
        say(
            "verdicts were not compared: the record was made under older rules; `expunge report` shows today's",
            error=True,
        )


@cli.command()
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--leaderboard", is_flag=True, help="Print a Markdown table of methods by tasks over all runs instead.")
@as_json
def report(folders: tuple[Path, ...], leaderboard: bool, json_: bool) -> None:
    """Write the page of each run again from its record; needs no torch."""
    if leaderboard:
        _leaderboard(folders, json_)
        return
    from expunge.reporting.page import write_report

    pages = [{"run": str(folder), "report": str(write_report(folder))} for folder in folders]
    if json_:
        print_json(pages)
    else:
        say("\n".join(page["report"] for page in pages))


@cli.command()
@click.argument("first", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("second", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="compare.html", show_default=True, help="The file.")
@as_json
def compare(first: Path, second: Path, out: Path, json_: bool) -> None:
    """Compare two runs on the same data and forget set: write a page, print a summary; needs no torch."""
    from expunge.reporting.compare import Pair, comparison_table
    from expunge.reporting.compare_page import write_comparison

    with consistent(f"{first} or {second}"):
        pair = Pair.open(first, second)
        page = write_comparison(pair, out)
        text = json_text(pair.as_json() | {"page": str(page)}) if json_ else comparison_table(pair)
    say(text)
    say(f"page  {page}", error=True)


@cli.command()
@out_option
@click.option("--yes", is_flag=True, help="Remove the outputs that no run needs; without it nothing is removed.")
@as_json
def clean(out: Path, yes: bool, json_: bool) -> None:
    """List what the cache of a folder for runs holds and what no run needs; needs no torch.

    A removed output is computed again when a run needs it. Do not remove any while a run uses the folder.
    """
    from expunge.base.clean import held, remove
    from expunge.reporting.cache import as_json as counted
    from expunge.reporting.cache import as_text

    outputs = held(out)
    if yes:
        remove(outputs)
    counts = {"out": str(out), **counted(outputs, removed=yes)}
    if json_:
        print_json(counts)
    else:
        say(as_text(counts))


def _leaderboard(folders: tuple[Path, ...], json_: bool) -> None:
    from expunge.reporting.leaderboard import leaderboard, markdown

    rows = leaderboard(folders)
    if json_:
        print_json(rows)
    else:
        say(markdown(rows))
