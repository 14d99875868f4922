"""The verb study."""

from __future__ import annotations

from pathlib import Path

import click

from expunge.base.terminal import say
from expunge.base.user_code import add_search_path, names_code
from expunge.cli.group import as_json, cli, executor_option, json_text, out_option, print_json, workers_option
from expunge.reporting.names import complete_preset, complete_study


@cli.command()
@click.argument("name", shell_complete=complete_study)
@click.option(
    "--preset",
    default="quick",
    show_default=True,
    shell_complete=complete_preset,
    help="Scale: quick (20 s, one seed, decides nothing), cpu (30 min), long (hours) or paper.",
)
@out_option
@click.option(
    "--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="Replaces the preset's seeds; repeatable."
)
@workers_option
@executor_option
@click.option("--dry-run", is_flag=True, help="Print seeds, claims, time and folder of the study; run nothing.")
@as_json
def study(
    name: str,
    preset: str,
    out: Path,
    seeds: tuple[int, ...],
    workers: int | None,
    on: str | None,
    dry_run: bool,
    json_: bool,
) -> None:
    """Measure a paper's claims against rules that were fixed beforehand; run again to finish an interrupted study.

    The default preset, quick, only shows that the study runs. Claims are decided from several seeds: use --preset cpu.
    """
    from expunge.pipeline.run import default_workers
    from expunge.reporting.progress import Progress
    from expunge.reporting.study import plan_text, read_study, study_table
    from expunge.study.run import planned, run_study

    if names_code(name) or names_code(on):
        add_search_path(Path.cwd())
    if dry_run:
        from expunge.pipeline.executor import executor_of

        executor_of(on, workers or default_workers())
        facts = planned(name, preset, out, seeds=seeds or None)
        say(json_text(facts) if json_ else plan_text(facts))
        return
    folder = run_study(
        name, preset, out, seeds=seeds or None, workers=workers or default_workers(), on=on, progress=Progress()
    )
    result = read_study(folder)
    if json_:
        keys = ("study", "preset", "seeds", "seconds", "load", "commit", "claims")
        print_json({key: result[key] for key in keys})
    else:
        say(study_table(result))
    say(f"record  {folder}\nreport  {folder / 'report.html'}", error=True)
