"""The result of a study for people: the table in the terminal, the page, and REPRODUCTION.md over all studies."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.base.errors import RunError, SpecError, unknown
from expunge.base.reading import read_inside
from expunge.reporting.figures import draw
from expunge.reporting.names import PRESETS
from expunge.reporting.render import write_page
from expunge.reporting.text import counted

Json = dict[str, Any]
RESULT = "study.json"


def read_study(path: Path) -> Json:
    """A study's result.

    Args:
        path: The study's folder, or the file.

    Raises:
        SpecError: The file is missing or holds no result of a study.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        result: Json = json.loads(read_inside(path.parent, path.name))
    except (RunError, ValueError, RecursionError):
        result = {}
    if not isinstance(result, dict) or not {"study", "preset", "claims", "figures"} <= result.keys():
        raise SpecError("there is no result of a study", where=str(path), remedy="run expunge study NAME first")
    return result


def write_study_page(folder: Path) -> Path:
    """Write `report.html` from a study's result.

    Returns:
        The page.
    """
    result = read_study(folder)
    drawings = [draw(figure) for figure in result["figures"]]
    figures = [
        {"title": figure["title"], "drawing": drawn, "names": _names(figure)}
        for figure, drawn in zip(result["figures"], drawings, strict=True)
    ]
    why, command = next_step(result)
    context = {**result, "rows": [_row(claim) for claim in result["claims"]], "drawn": figures}
    context |= {"tally": tally(result), "why": why, "command": command}
    path = folder / "report.html"
    write_page(path, "study.html", context, drawings)
    return path


def _names(figure: Mapping[str, Any]) -> list[str]:
    return [series["name"] for series in figure.get("series", ()) if series["name"]]


def _row(claim: Mapping[str, Any]) -> Json:
    return {
        **claim,
        "text": measured_text(claim),
        "each": ", ".join(_number(v) for v in claim["measured"]["values"]),
        "parts": parts_text(claim),
    }


def parts_text(claim: Mapping[str, Any]) -> str:
    """Mean of every component of a claim about an array; empty for a claim about one number."""
    return ", ".join(f"{name} {_number(mean)}" for name, mean in claim["measured"]["parts"].items())


def measured_text(claim: Mapping[str, Any]) -> str:
    """A claim's mean over seeds with its 90 % interval and unit; for an array, of the deciding component."""
    measured = claim["measured"]
    if not measured["n"]:
        return "-"
    value, low, high = (_number(measured[name]) for name in ("value", "low", "high"))
    spread = "" if low == "NaN" else f" [{low}, {high}]"
    return f"{value}{spread} {measured['unit']}, n = {measured['n']}"


def _number(value: Any) -> str:
    number = float(value)
    return f"{number:.3g}" if math.isfinite(number) else "NaN"


MOST_SEEDS = 30
"""More seeds than this are not proposed as a next step."""


def tally(result: Mapping[str, Any]) -> dict[str, int]:
    """Verdict -> number of claims, in the order of the page."""
    counts = Counter(claim["verdict"] for claim in result["claims"])
    return {verdict: counts[verdict] for verdict in ("reproduced", "not reproduced", "inconclusive") if counts[verdict]}


def next_step(result: Mapping[str, Any]) -> tuple[str, str]:
    """Why claims are left open, and the command that would decide them; the command is empty if there is none."""
    open_claims = [claim for claim in result["claims"] if claim["verdict"] == "inconclusive"]
    study, preset = result["study"], result["preset"]
    if not open_claims:
        return "Every claim is decided.", ""
    if len(result["seeds"]) < 2 or preset == "quick":
        why = "One seed decides no claim: without a second one, nobody knows how much the numbers scatter."
        why = why if len(result["seeds"]) < 2 else "Preset quick is too small to decide every claim."
        better = "cpu" if preset == "quick" else preset
        return f"{why} Preset {better}: {PRESETS[better]}.", f"expunge study {study} --preset {better}"
    if any("needed" not in claim for claim in open_claims):  # an older result
        return "The note of each open claim says what would decide it.", ""
    counts = [claim.get("needed") for claim in open_claims]
    within = [count for count in counts if count is not None and count <= MOST_SEEDS]
    if within:
        first, more = list(result["seeds"]), max(within)
        seeds = [*first, *(s for s in range(more + len(first)) if s not in first)][: max(more, len(first))]
        why = f"{len(within)} of the {counted(len(open_claims), 'open claim')} would be decided by {more} seeds."
        return why, f"expunge study {study} --preset {preset}{''.join(f' --seed {s}' for s in seeds)}"
    unmeasured = sum(not claim["measured"]["n"] for claim in open_claims)
    larger = {"quick": "cpu", "cpu": "long"}.get(preset)
    if unmeasured and larger:
        why = (
            f"{counted(unmeasured, 'claim')} cannot be measured at preset {preset}. Preset {larger}: {PRESETS[larger]}."
        )
        return why, f"expunge study {study} --preset {larger}"
    return "More seeds would not decide the claims that are left open, as far as these seeds can tell.", ""


def study_table(result: Mapping[str, Any]) -> str:
    """The claims, a few lines each, then the tally and the next step, for the terminal."""
    lines = []
    for claim in result["claims"]:
        rank = "primary  " if claim["primary"] else "secondary"
        lines.append(f"{claim['verdict']:14} {rank}  {claim['id']}")
        lines.append(f"    {claim['statement']}")
        note = f"  ({claim['note']})" if claim["note"] else ""
        lines.append(f"    rule {claim['rule']['holds']}; measured {measured_text(claim)}{note}")
        if claim["measured"]["parts"]:
            lines.append(f"    {parts_text(claim)}")
    why, command = next_step(result)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in tally(result).items())
    seeds = ", ".join(map(str, result["seeds"]))
    lines += ["", f"{result['study']}, preset {result['preset']}, seeds {seeds}: {counts}", why]
    return "\n".join([*lines, f"next    {command}"] if command else lines)


def plan_text(plan: Mapping[str, Any]) -> str:
    """The facts of `study.run.planned` for the terminal."""
    seeds, stored = ", ".join(map(str, plan["seeds"])), ", ".join(map(str, plan["stored"]))
    lines = [
        f"{plan['study']}, preset {plan['preset']}",
        f"claims  {plan['claims']}, of which {plan['primary']} primary",
        f"seeds   {seeds}",
        f"time    {plan['takes']}" if plan["takes"] else "",
        f"stored  seeds {stored}; used again unless the study or its settings have changed" if stored else "",
        f"folder  {plan['folder']}",
    ]
    if len(plan["seeds"]) < 2:
        lines.append("One seed decides no claim. Give --seed twice or more, or --preset cpu.")
    return "\n".join(filter(None, lines))


HEAD = """\
# Reproduction

Every claim of the papers behind expunge that a study tests, with the rule that was fixed beforehand. The script
`python scripts/reproduction.py` makes this page from the results and comments in `results/`; do not edit it by hand.

*reproduced*: the rule holds, tested one-sided at 5 % over seeds (Holm over a study's primary claims). *not reproduced*:
its opposite holds. *inconclusive*: neither, or it was not measured at this scale. Means come with 90 % intervals. A
paper's own number is given only if it could be read.
"""


def reproduction(results: Sequence[Mapping[str, Any]], comments: Mapping[str, Mapping[str, str]]) -> str:
    """REPRODUCTION.md.

    Args:
        results: Results of studies, as `read_study` returns them, in the order in which they are shown.
        comments: Written comments on measurements, by study and claim id.

    Returns:
        Markdown.

    Raises:
        SpecError: A comment names an unknown claim.
    """
    for study, about in comments.items():
        known = {claim["id"] for result in results if result["study"] == study for claim in result["claims"]}
        for claim in about:
            if claim not in known:
                raise unknown("claim", claim, known, where=f"comments.toml, {study}")
    return "\n".join([HEAD, *(_section(result, comments.get(result["study"], {})) for result in results)])


def _section(result: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    seeds = ", ".join(map(str, result["seeds"]))
    packages = result["environment"]["packages"]
    lines = [
        f"## {result['study']}, preset `{result['preset']}`",
        "",
        f"{result['paper']}. Seeds {seeds}; {result['spent'] / 60:.0f} min of computing; torch {packages['torch']}; "
        f"commit {str(result['commit'])[:12]}. Again: `expunge study {result['study']} --preset {result['preset']}`.",
        "",
        "| claim | rule | measured | verdict |",
        "| --- | --- | --- | --- |",
        *(_line(claim) for claim in result["claims"]),
        "",
        *(f"- `{claim}`: {comment}" for claim, comment in comments.items()),
    ]
    return "\n".join([*lines, ""] if comments else lines)


def _line(claim: Mapping[str, Any]) -> str:
    mark = "**primary** " if claim["primary"] else ""
    paper = f" Paper: {claim['paper_value']}." if claim["paper_value"] else ""
    note = f" ({claim['note']})" if claim["note"] else ""
    words = [
        f"{mark}`{claim['id']}`: {claim['statement']} ({claim['source']}){paper}",
        f"{claim['rule']['holds']}: {claim['rule']['reason']}",
        measured_text(claim) + (f"; means: {parts_text(claim)}" if claim["measured"]["parts"] else ""),
        claim["verdict"] + note,
    ]
    return f"| {' | '.join(word.replace('|', chr(92) + '|') for word in words)} |"
