"""Runs of the study `rem`: the cells of the plane, the methods with their candidates, and attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.study.choose import Entry

TUNING, TUNING_RATE = (100,), 0.6
"""Seeds and discovery rate on which settings are chosen; neither is reported."""
SHORT = {"epochs": 2}


def model(memory: float) -> dict[str, Any]:
    """The CNN with half of the channels reserved after each of its ReLUs."""
    block = {"name": "tied_dropout", "at": ["2", "5", "8", "11"], "fixed": 0.5, "memory": memory}
    return {"name": "cnn", "block": [block]}


MODEL = model(0.0)
"""The paper's model of capacity 0.5, which REM expands."""
TIED = model(0.2)
"""The same with example-tied dropout in training."""

LOW, MEDIUM, HIGH = "label_swap", "class_confusion", "poison_trigger"
REGULARITIES = (LOW, MEDIUM, HIGH)

ABLATIONS = ("rem", "rem-no_removal", "rem-npo")
"""From the full method to the least: REM; removal only before redirection, not during it; only removal (NPO)."""

GRID: Mapping[str, Sequence[Entry]] = {
    "rem": [{"name": "rem", "learning_rate": rate} for rate in (2e-4, 4e-4, 1e-3)],
    "finetune": [{"name": "finetune", "learning_rate": rate} for rate in (2e-4, 5e-4, 1e-3)],
    "scrub": [{"name": "scrub", "learning_rate": rate} for rate in (1e-4, 2e-4, 5e-4)],
    "bad_teacher": [{"name": "bad_teacher", "learning_rate": rate} for rate in (1e-4, 2e-4, 5e-4)],
    "npo_retain": [{"name": "npo", "learning_rate": rate} for rate in (1e-4, 2e-4, 5e-4)],
    "potion": [{"name": "potion"}],
}
MORE: Mapping[str, Sequence[Entry]] = {
    "gradient_ascent": [{"name": "gradient_ascent", "learning_rate": rate} for rate in (5e-5, 1e-4, 2e-4)],
    "random_relabel": [{"name": "random_relabel", "weight": weight} for weight in (0.1, 0.3, 1.0)],
    "ssd": [{"name": "ssd", "alpha": alpha} for alpha in (2.0, 5.0, 10.0)],
    "lfssd": [{"name": "lfssd", "alpha": alpha} for alpha in (2.0, 5.0, 10.0)],
    "assd": [{"name": "assd"}],
    "salun": [{"name": "salun", "learning_rate": rate} for rate in (1e-4, 2e-4, 5e-4)],
}
"""Candidates of the long preset only."""

QUICK: Mapping[str, Any] = {
    "train": 200,
    "test": 200,
    "epochs": 5,
    "rates": (0.5, 1.0),
    "choosing": False,
    "small": True,
}


def cell(regularity: str, rate: float) -> str:
    """Name of a cell's run."""
    return f"{regularity}-{rate:g}"


def base(train: int, test: int | None, epochs: int, regularity: str, rate: float, **task: Any) -> dict[str, Any]:
    """The spec's data, model, training and task; 4 % of the images are corrupted (in `MEDIUM`, a fifth of two classes).

    The two confused classes are shirts (6) and T-shirts (0), which nets confuse even without wrong labels.
    """
    count = max(train // 25, 10)
    settings: dict[str, Any] = {"count": count}
    if regularity == MEDIUM:
        settings = {"count": count // 2, "first": 0, "second": 6}
    return {
        "data": {"name": "fashion_mnist", "train": train, **({"test": test} if test else {})},
        "model": MODEL,
        "train": {"epochs": epochs},
        "forget": {"name": regularity, "discovery": rate, **settings, **task},
    }


def grid(*, every: bool, small: bool) -> dict[str, list[Entry]]:
    """Candidates by label."""
    candidates = {**GRID, **(MORE if every else {})}
    if small:
        candidates = {label: candidates[label] for label in ("rem", "finetune", "npo_retain")}
    return {label: [shortened(entry, small) for entry in entries] for label, entries in candidates.items()}


def methods(chosen: Mapping[str, Entry]) -> list[Entry]:
    """Every model of a cell: the chosen methods, the ablations of REM, the ideal REM, and retraining."""
    entries = [{**entry, "label": label} for label, entry in chosen.items()]
    rem = chosen["rem"]
    entries += [{**rem, "variant": name.removeprefix("rem-"), "label": name} for name in ABLATIONS[1:]]
    return [*entries, {**rem, "ideal": True, "label": "rem-ideal"}, {"name": "retrain"}]


def shortened(entry: Entry, small: bool) -> Entry:
    """The entry with two epochs, if the method has epochs."""
    return {**entry, **SHORT} if small and entry["name"] not in ("potion", "ssd", "lfssd", "assd") else dict(entry)
