"""The command line: each verb reads its arguments, calls the library, prints data on stdout and progress on stderr."""

from __future__ import annotations

import io
import json
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from expunge.base import registry
from expunge.base.errors import ExpungeError
from expunge.base.reading import consistent
from expunge.base.record import spelled
from expunge.base.terminal import OutputClosed, say
from expunge.base.user_code import add_search_path, names_code
from expunge.reporting.names import complete_kind, complete_name, complete_preset, complete_study, kind_of, kinds_of

KINDS = tuple(registry.FOLDERS)

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON on stdout.")
executor_option = click.option(
    "--on",
    metavar="NAME",
    help="Executor that runs the tasks: inline, processes, one of another package, or module:Class.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="expunge")
def cli() -> None:
    """Remove what a trained neural network has learned, and show whether it is really gone.

    Exit codes: 0 done, 1 a declared gate failed, 2 bad spec or usage, 3 a prerequisite is missing, 4 the run failed,
    130 interrupted.
    """


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder for runs.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value of the spec; repeatable.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of parallel processes; by default one per core.")
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
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder for runs.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value of the spec; repeatable.")
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
        _print_json({"run": parsed.name, "status": "done", **facts})
        return
    say(
        "\n\n".join(
            diagnosed(d["diagnostic"], rows[d["diagnostic"]], d["sentence"], d["proposal"])
            for d in sorted(diagnoses, key=lambda d: not d["proposal"])
        )
    )


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--method", "label", help="Label of the method; by default the spec's first.")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="File for the weights, by default METHOD.safetensors; any other name is a folder for the model.",
)
@click.option("--out", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder for runs.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value of the spec; repeatable.")
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
        _print_json(result)
    else:
        gradients = "unknown" if result["gradients"] is None else f"{result['gradients']:,}"
        say(f"{result['model']}  {gradients} gradients, {result['seconds']:.1f} s")


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder for runs.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value of the spec; repeatable.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of parallel processes; by default one per core.")
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


@cli.command()
@click.argument("name", shell_complete=complete_study)
@click.option(
    "--preset",
    default="quick",
    show_default=True,
    shell_complete=complete_preset,
    help="Scale: quick (20 s, one seed, decides nothing), cpu (30 min), long (hours) or paper.",
)
@click.option("--out", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder for runs.")
@click.option(
    "--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="Replaces the preset's seeds; repeatable."
)
@click.option("--workers", type=click.IntRange(min=1), help="Number of parallel processes; by default one per core.")
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
        say(_json_text(facts) if json_ else plan_text(facts))
        return
    folder = run_study(
        name, preset, out, seeds=seeds or None, workers=workers or default_workers(), on=on, progress=Progress()
    )
    result = read_study(folder)
    if json_:
        keys = ("study", "preset", "seeds", "seconds", "load", "commit", "claims")
        _print_json({key: result[key] for key in keys})
    else:
        say(study_table(result))
    say(f"record  {folder}\nreport  {folder / 'report.html'}", error=True)


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
        _print_json(by_kind)
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
    from expunge.reporting.text import describe

    parts = [describe(kind, registry.load(kind, name)) for kind in kinds_of(name)]
    if json_:
        _print_json(parts)
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
        _print_json({"name": name, "bibtex": entries})
    else:
        say("\n\n".join(entries) or f"{name} has no paper of its own", error=not entries)


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
            _print_json({"model": str(folder), "status": "verified", **checked})
        else:
            say(f"{folder}: {checked['digests']} digests agree")
        return
    checked = verify_run(folder)
    if json_:
        _print_json({"run": str(folder), "status": "verified", **checked})
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
        _print_json(pages)
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
        text = _json_text(pair.as_json() | {"page": str(page)}) if json_ else comparison_table(pair)
    say(text)
    say(f"page  {page}", error=True)


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder for runs.")
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
        _print_json(counts)
    else:
        say(as_text(counts))


@cli.command()
@as_json
def doctor(json_: bool) -> None:
    """Check what this machine can run, and say what to install for the rest."""
    from expunge.reporting.doctor import examine

    checks = examine()
    if json_:
        _print_json(checks)
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


def main() -> None:
    """The console script: prints one message for a user's mistake, and exits with the right code."""
    try:
        cli.main(standalone_mode=False, prog_name="expunge", complete_var="_EXPUNGE_COMPLETE")
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted; finished stages are kept, run the same command again to continue", error=True)
        sys.exit(130)
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        say(usage.getvalue().rstrip(), error=True)
        sys.exit(2)
    except ExpungeError as error:
        say(f"expunge: {error}", error=True)
        sys.exit(error.exit_code)
    except OutputClosed:
        sys.exit(0)
    except SystemExit as left:
        # Click exits with 1, a failed gate's code, when the reader of a help text closes the pipe.
        if Path(traceback.extract_tb(left.__traceback__)[-1].filename).parent == Path(click.__file__).parent:
            sys.exit(0)
        say(f"expunge: a module that the spec names ended the program, with exit code {left.code!r}", error=True)
        sys.exit(4)
    except MemoryError:
        say("expunge: there is not enough memory; finished stages are kept", error=True)
        sys.exit(4)
    except Exception:
        say(traceback.format_exc().rstrip(), error=True)
        say("expunge: this is a bug, in expunge or in a part that the spec names; finished stages are kept", error=True)
        sys.exit(4)


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
        _print_json(outcome.as_json())
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
        _print_json(facts | ({"memory": {"bytes": memory.bytes, "what": memory.what}} if memory else {}))
        return
    say(forecast_text([(f.stage.kind, None if f.done else f.seconds) for f in forecasts], workers))
    if memory is not None:
        say(str(memory))
    for f in forecasts if listed else ():
        say(f"{'done' if f.done else f'{f.seconds:.1f} s':>8}  {f.stage.name}")


def _leaderboard(folders: tuple[Path, ...], json_: bool) -> None:
    from expunge.reporting.leaderboard import leaderboard, markdown

    rows = leaderboard(folders)
    if json_:
        _print_json(rows)
    else:
        say(markdown(rows))


def _shown(name: str, part: dict[str, Any]) -> str:
    lines = [f"{name} ({part['kind']})", "", part["summary"], ""]
    lines += [f"  {s['name']} = {s['default']!r}\n      {s['doc']}" for s in part["settings"]]
    return "\n".join([*lines, f"  needs: {', '.join(part['needs'])}"] if part["needs"] else lines)


def _print_json(value: Any) -> None:
    say(_json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(spelled(value), indent=1, allow_nan=False)
