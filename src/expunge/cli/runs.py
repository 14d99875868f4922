"""The verbs that compute: run, diagnose, unlearn and audit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from expunge.base.terminal import say
from expunge.base.user_code import add_search_path, names_code
from expunge.cli.group import (
    as_json,
    cli,
    executor_option,
    out_option,
    print_json,
    set_option,
    spec_argument,
    workers_option,
)


@cli.command()
@spec_argument
@out_option
@set_option
@workers_option
@executor_option
@click.option("--dry-run", is_flag=True, help="Print what is left to do and the expected time; run nothing.")
@click.option("--stages", is_flag=True, help="With --dry-run, also list every stage.")
@click.option("--save", type=click.Path(path_type=Path), help="Folder for the unlearned models, each in SAVE/LABEL.")
@as_json
def run(
    spec: Path,
    out: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    on: str | None,
    dry_run: bool,
    stages: bool,
    save: Path | None,
    json_: bool,
) -> None:
    """Train or load, unlearn, attack, audit, judge, and write the record; run again to finish what is missing."""
    from expunge.base.spec import read

    parsed = read(spec, overrides)
    if names_code(on):
        add_search_path(parsed.folder)
    if dry_run:
        from expunge.pipeline.executor import executor_of
        from expunge.pipeline.run import default_workers

        executor = executor_of(on, workers or default_workers())
        _dry_run(parsed, out, executor.workers, json_, stages)
        return
    _finish(parsed, spec, out, workers, on, json_, save)


@cli.command()
@spec_argument
@out_option
@set_option
@as_json
def diagnose(spec: Path, out: Path, overrides: tuple[str, ...], json_: bool) -> None:
    """Only diagnose: how strongly the model memorised the forget set, which step sizes are stable; unlearns nothing."""
    from expunge.base.spec import read

    parsed = read(spec, overrides)
    from expunge.pipeline.verbs import diagnose_one
    from expunge.reporting.listing import diagnosed
    from expunge.reporting.progress import Progress

    diagnoses = diagnose_one(parsed, out, Progress())
    # There is one seed, so the rows over seeds are the rows of that seed.
    rows = {d["diagnostic"]: {row["what"]: row for row in d["rows"] if row["seed"] is None} for d in diagnoses}
    if json_:
        names = ("value", "low", "high", "n", "unit", "better")
        diagnostics = {
            label: {what: {n: row[n] for n in names} for what, row in by_what.items()}
            for label, by_what in rows.items()
        }
        sentences = {d["diagnostic"]: d["sentence"] for d in diagnoses}
        proposals = {d["diagnostic"]: d["proposal"] for d in diagnoses if d["proposal"]}
        facts = {"diagnostics": diagnostics, "sentences": sentences, "proposals": proposals}
        print_json({"run": parsed.name, "status": "done", **facts})
        return
    say(
        "\n\n".join(
            diagnosed(d["diagnostic"], rows[d["diagnostic"]], d["sentence"], d["proposal"])
            for d in sorted(diagnoses, key=lambda d: not d["proposal"])
        )
    )


@cli.command()
@spec_argument
@click.option("--method", "label", help="Label of the method; by default the spec's first.")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="File for the weights, by default METHOD.safetensors; any other name is a folder for the model.",
)
@out_option
@set_option
@as_json
def unlearn(
    spec: Path, label: str | None, save: Path | None, out: Path, overrides: tuple[str, ...], json_: bool
) -> None:
    """Only unlearn: run one method on the spec's model with its first seed, and write the weights or a model folder.

    A folder also holds a model card. For a Hugging Face model it is what from_pretrained and servers load.
    """
    from expunge.base.spec import read

    parsed = read(spec, overrides)
    from expunge.pipeline.verbs import unlearn_one
    from expunge.reporting.progress import Progress

    result = unlearn_one(parsed, out, label, save, Progress())
    if json_:
        print_json(result)
    else:
        gradients = "unknown" if result["gradients"] is None else f"{result['gradients']:,}"
        say(f"{result['model']}  {gradients} gradients, {result['seconds']:.1f} s")


@cli.command()
@spec_argument
@click.argument("model", type=click.Path(path_type=Path))
@out_option
@set_option
@workers_option
@executor_option
@click.option("--save", type=click.Path(path_type=Path), help="Folder for the model with its verdict, in SAVE/LABEL.")
@as_json
def audit(
    spec: Path,
    model: Path,
    out: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    on: str | None,
    save: Path | None,
    json_: bool,
) -> None:
    """Only audit: attack and judge MODEL, the spec's model after it was unlearned elsewhere.

    MODEL is a safetensors file, or a folder that Hugging Face's save_pretrained wrote.
    """
    from expunge.base.spec import read

    parsed = read(spec, overrides)
    from expunge.pipeline.verbs import audit_of

    if names_code(on):
        add_search_path(parsed.folder)
    _finish(audit_of(parsed, model), spec, out, workers, on, json_, save)


def _finish(
    spec: Any, path: Path, out: Path, workers: int | None, on: str | None, json_: bool, save: Path | None
) -> None:
    """Run to the end and print the result; check gates last, so that the record is complete when one fails."""
    from expunge.base.record import locked
    from expunge.pipeline.run import check_gates, default_workers
    from expunge.pipeline.run import run as run_spec
    from expunge.reporting.next_steps import advice
    from expunge.reporting.page import write_report
    from expunge.reporting.progress import Progress
    from expunge.reporting.record import Run
    from expunge.reporting.text import costs_table, verdict_table

    outcome = run_spec(spec, out, workers=workers or default_workers(), on=on, progress=Progress(), save=save)
    with locked(outcome.folder):  # another run of this spec may be writing its record
        page = write_report(outcome.folder)
        said = advice(Run.open(outcome.folder))
    if json_:
        print_json(outcome.as_json())
    else:
        say(verdict_table(outcome.table, outcome.verdicts))
        say(costs_table(outcome.costs), error=True)
    lines = [outcome.warning] if outcome.warning else []
    lines += [f"record  {outcome.folder}", f"report  {page}", *(f"model   {folder}" for folder in outcome.saved)]
    lines.append(f"ship    {', '.join(said.ship) or 'no model yet'}")
    # A record does not know where its spec file is; the command does.
    step = (said.step.code or said.step.text).replace(f"run {spec.name}.toml", f"run {shlex.quote(str(path))}")
    lines += [f"next    {line}" for line in step.split("\n")]
    say("\n".join(lines), error=True)
    check_gates(spec, outcome.verdicts)


def _dry_run(spec: Any, out: Path, workers: int, json_: bool, listed: bool) -> None:
    from expunge.pipeline.run import dry_run
    from expunge.reporting.progress import forecast_text

    forecasts, memory = dry_run(spec, out, workers)
    seconds = sum(f.seconds for f in forecasts) / workers
    if json_:
        stages = [{"stage": f.stage.name, "done": f.done, "seconds": f.seconds} for f in forecasts]
        facts = {"run": spec.name, "status": "planned", "stages": stages, "seconds": seconds, "workers": workers}
        print_json(facts | ({"memory": {"bytes": memory.bytes, "what": memory.what}} if memory else {}))
        return
    say(forecast_text([(f.stage.kind, None if f.done else f.seconds) for f in forecasts], workers))
    if memory is not None:
        say(str(memory))
    for f in forecasts if listed else ():
        say(f"{'done' if f.done else f'{f.seconds:.1f} s':>8}  {f.stage.name}")
