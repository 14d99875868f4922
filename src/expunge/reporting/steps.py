"""What to do about one model: a sentence, and a command where one can change its verdict."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from expunge.base import registry
from expunge.evidence.reasons import Deciders, deciding
from expunge.reporting._toml import spelled_value
from expunge.reporting.progress import clock_text
from expunge.reporting.record import Json, Run
from expunge.reporting.text import knowledge_key

MOST_SEEDS = 30
"""More seeds than this are not proposed."""
USUAL = ("learning_rate", "epochs")
"""Settings that make most methods stronger, the first that a method has; its class fact `stronger` names another."""
FACTOR = 2.0
MOST_FORGOTTEN = 0.25
"""Share of the training set above which a larger forget set is not proposed."""
OTHERS = "expunge list methods"
NEAREST = {
    "recitation": ("curvature_edit", "docs/texts.md: relearning brought back less than an eighth of what it took out"),
    "accuracy": ("eu_k", "docs/leaderboard.md: no attack brought it further than 11 points from retraining"),
}
"""By a metric of the run: the method to try after one that fails, and the measurement that speaks for it."""
RELEARN = '[[attack]]\nname = "relearn"'


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    text: str
    """A sentence or two for a reader who knows the verdict."""
    code: str = ""
    """A command, or lines for the notebook; empty if there is none."""
    spec: str = ""
    """Lines to add to the spec before that; mostly none."""
    other: bool = False
    """Whether it leaves the model and takes another method."""


def is_control(run: Run, model: str) -> bool:
    """Whether a method is the control: retrained, as the reference is."""
    return _entry(run, model).get("name") == "retrain"


def step_of(run: Run, verdict: Json) -> Step:
    """What to do about one model."""
    flags, model = set(verdict["flags"]), verdict["model"]
    if is_control(run, model):
        return _control_step(run, verdict)
    if "erased" in flags:
        return _ship(run, model)
    if "inconclusive" in flags:
        return _undecided(run, verdict)
    weak, harmful = flags & {"incomplete", "dormant"}, flags & {"damaged", "over-forgotten"}
    if weak and harmful:
        return _other(run, "It forgets too little and loses too much, so neither more nor less of it will do.")
    if "dormant" in flags:
        return _other(run, "It silences the answers and keeps the knowledge, and more of it seldom helps.")
    return _scaled(run, model, stronger=not harmful)


def _other(run: Run, text: str) -> Step:
    """Take another method: the one that withstood attacks best on such a problem, unless this run has it already."""
    metrics = {m.scores.metric for m in run.table.measured}
    tried = {entry["name"] for entry in run.spec.get("method") or []}
    name, why = next((NEAREST[metric] for metric in NEAREST if metric in metrics), ("", ""))
    if not name or name in tried:
        return Step(f"{text} Take another method.", OTHERS, other=True)
    text = f"{text} Take another method, such as {name} ({why})."
    if not run.again:
        return Step(text, f'done = expunge.unlearn(case, "{name}")\nprint(expunge.audit(done, case))', other=True)
    method = shlex.quote(f'method=[{{name="{name}"}}]')
    command = f"expunge run {run.name}.toml --set {method} --set name={shlex.quote(f'{run.name}-{name}')}"
    return Step(text, command, other=True)


def _control_step(run: Run, verdict: Json) -> Step:
    if verdict["verdict"] == "erased":
        return Step("The control passes, as it should: the audits of this run can clear a model.")
    if verdict["verdict"] == "inconclusive":
        step = _undecided(run, verdict)
        return Step(f"The control should pass, so this run is too small to clear any model. {step.text}", step.code)
    return Step("The control is accused, and it never saw the forget set: do not trust the accusations of this run.")


def _ship(run: Run, model: str) -> Step:
    if not run.again:
        return Step("Keep the evidence beside it.", 'result.save("record")')
    text = f"This writes the audited weights of seed {run.table.seeds[0]}, with a model card, to models/{model}."
    return Step(text, f"expunge run {run.name}.toml --save models")


def _scaled(run: Run, model: str, *, stronger: bool) -> Step:
    """Run the method again with the setting that makes it forget more, or less."""
    entry = _entry(run, model)
    setting, factor = _knob(entry)
    if not setting:
        text = f"Change its settings so that it {'forgets more' if stronger else 'loses less'}."
        name = entry.get("name", "")
        return Step(text, f"expunge show {name}" if name in registry.names("method") else "")
    before = entry[setting]
    after = _times(before, factor if stronger else 1 / factor)
    text = (
        f"{'Raise' if after > before else 'Lower'} {setting} from {spelled_value(before)} to {spelled_value(after)}, "
        f"so that it {'forgets more' if stronger else 'loses less'}."
    )
    return Step(text, _again_with(run, model, setting, after))


def _knob(entry: Json) -> tuple[str, float]:
    """The setting that makes a method stronger, and the factor of the next try; no setting if none is known."""
    name = str(entry.get("name", ""))
    fact = registry.facts("method", name)["stronger"] if name in registry.names("method") else ""
    declared, _, factor = fact.rpartition(", ")
    if _is_number(entry.get(declared)):
        return declared, float(factor)
    return next((usual for usual in USUAL if _is_number(entry.get(usual))), ""), FACTOR


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _times(value: float, factor: float) -> float:
    return max(round(value * factor), 1) if isinstance(value, int) else float(f"{value * factor:.2g}")


def _again_with(run: Run, model: str, setting: str, value: float) -> str:
    if run.again:
        return f"expunge run {run.name}.toml --set {shlex.quote(f'method.{model}.{setting}={spelled_value(value)}')}"
    entry = {k: v for k, v in _entry(run, model).items() if k not in ("name", "label", "after") and v is not None}
    arguments = "".join(f", {k}={v!r}" for k, v in (entry | {setting: value}).items())
    name = _entry(run, model).get("name", model)
    return f'done = expunge.unlearn(case, "{name}"{arguments})\nprint(expunge.audit(done, case))'


def _undecided(run: Run, verdict: Json) -> Step:
    """What would decide an `inconclusive` verdict."""
    needs = deciding(verdict["reasons"])
    if "reference" in needs.limits:
        return Step(
            "Nothing was retrained, so nothing can be cleared. Give the training, as [train] or as your own function: "
            "then references are retrained without the forget set."
        )
    if not run.table.attacks:
        text = "No attack was run. Add one that trains, and run it again."
        return Step(text, f"expunge run {run.name}.toml", RELEARN) if run.again else Step(text)
    if needs.unread:
        return _unread(run, needs.unread)
    if needs.limits & {"forget", "test"}:
        return _more_examples(run, verdict["model"], needs)
    if "attack" in needs.limits:
        return Step("No attack shows whether knowledge is only hidden. Change the attack as the reasons say.")
    if needs.seeds is None:
        return _nearer(run, verdict["model"], "More seeds would not decide.")
    if needs.seeds > MOST_SEEDS:
        return _nearer(run, verdict["model"], f"About {needs.seeds} seeds would decide, which is seldom worth it.")
    return _more_seeds(run, max(needs.seeds, 3))


def _unread(run: Run, layer: str) -> Step:
    """Read a layer that the method kept; a probe that the run has may read another one."""
    text = f"It left {layer!r} and all layers below as they were, and no audit read them: probe that layer."
    if not run.again:
        return Step(text, f'print(expunge.audit(done, case, audits=[{{"name": "probe", "layer": "{layer}"}}]))')
    return Step(text, f"expunge run {run.name}.toml", f'[[audit]]\nname = "probe"\nlayer = "{layer}"')


def _nearer(run: Run, model: str, text: str) -> Step:
    """Bring a model that lies too close to a bound away from it: it forgets more, or less if it forgot too much."""
    if is_control(run, model):
        return Step(text)
    worst = run.worst(model, knowledge_key(run.table))
    stronger = worst is None or float(worst["residual"]) > 0
    step = _scaled(run, model, stronger=stronger)
    return Step(f"{text} Or {step.text[0].lower()}{step.text[1:]}", step.code)


def _more_seeds(run: Run, count: int) -> Step:
    done = list(run.table.seeds)
    count = max(count, len(done) + 1)
    seeds = [*done, *(seed for seed in range(count + len(done)) if seed not in done)][:count]
    what = "references" if run.table.about_one_model else "seeds"
    if not run.again:
        return Step(f"About {count} {what} would decide.", f"print(expunge.audit(done, case, references={count}))")
    each = sum(stage.seconds for stage in run.manifest.stages if stage.seed is not None) / len(done)
    text = (
        f"About {count} {what} would decide. What this run computed is used again; the rest takes about "
        f"{time_text((count - len(done)) * each)} of computing."
    )
    sets = f"--set {shlex.quote(f'seeds={seeds}')} --set name={shlex.quote(f'{run.name}-{count}')}"
    return Step(text, f"expunge run {run.name}.toml {sets}")


def _more_examples(run: Run, model: str, needs: Deciders) -> Step:
    if "forget" not in needs.limits:
        return _nearer(run, model, "A larger test set would decide; more seeds would not.")
    text = "More forget examples would decide; more seeds would not."
    scored = max((m.scores.values.size for m in run.table.measured if m.scores.split == "forget"), default=0)
    count, retained = run.part("forget").get("count"), (run.environment.get("counts") or {}).get("retain", 0)
    if needs.forget and scored and isinstance(count, int) and run.again:
        wanted = math.ceil(count * needs.forget / scored)
        if wanted <= MOST_FORGOTTEN * (retained + count):
            sets = f"--set forget.count={wanted} --set name={shlex.quote(f'{run.name}-{wanted}')}"
            return Step(f"{text} Forget {wanted} instead of {count}.", f"expunge run {run.name}.toml {sets}")
    return _nearer(run, model, text)


def _entry(run: Run, model: str) -> Json:
    entries: list[Json] = run.spec.get("method") or []
    return next((entry for entry in entries if entry.get("label", entry["name"]) == model), {})


def time_text(seconds: float) -> str:
    """A time for a sentence, such as `3.2 s` or `2 min`."""
    return f"{seconds:.1f} s" if seconds < 10 else clock_text(seconds)
