"""The forget examples on the page: each example, and every model's answer to it, before and after attacks."""

from __future__ import annotations

import os
from itertools import takewhile

from markupsafe import Markup

from expunge.base.manifest import read_json
from expunge.evidence.table import ORIGINAL, REFERENCE
from expunge.reporting.record import NAMES, Json, Run

OPEN = {"images": 6, "texts": 3}
"""Number of examples that are visible at once; the others are folded."""
PICTURE = "data:image/png;base64,"


def examples(run: Run) -> Json | None:
    """The output of the gallery stage, arranged by example and model; none if the run has no gallery."""
    file = run.manifest.file("examples")
    # The owner of a record may delete the examples before sharing it.
    if file is None or not os.path.lexists(run.folder / file.path):
        return None
    gallery = read_json(run.folder, file.path, file.sha256)
    models = list(dict.fromkeys(entry["model"] for entry in gallery["models"]))
    # Stable, so that examples that came back in equally many models keep their order.
    shown = sorted((_example(gallery, e, models) for e in gallery["examples"]), key=lambda e: -len(e["came_back"]))
    count = OPEN.get(gallery["kind"], 0)
    return {
        "kind": gallery["kind"],
        "seed": gallery["seed"],
        "of": gallery["of"],
        "different": gallery.get("different", gallery["of"]),
        "models": [_named(model) for model in models],
        "original": _named(ORIGINAL),
        "attacks": list(dict.fromkeys(entry["attack"] for entry in gallery["models"] if entry["attack"])),
        "open": shown[:count],
        "folded": shown[count:],
    }


def _example(gallery: Json, example: Json, models: list[str]) -> Json:
    answers: dict[tuple[str, str | None], Json] = {}
    for entry, answer in zip(gallery["models"], example["answers"], strict=True):
        secret = example.get("secret")
        text = answer["said"] if secret is None else _marked(answer["said"], secret)
        answers[entry["model"], entry["attack"]] = {"said": text, "knows": answer["knows"]}
    attacks = list(dict.fromkeys(attack for _, attack in answers if attack))
    rows = []
    for model in models:
        after = [{"attack": attack, **answers[model, attack]} for attack in attacks if (model, attack) in answers]
        row = {"model": _named(model), "unlearned": model != REFERENCE}
        rows.append(row | {"before": answers.get((model, None)), "after": after})
    facts: Json = {key: example[key] for key in ("id", "trained", "true") if key in example}
    facts |= {key: _line(example[key]) for key in ("prompt", "secret") if key in example}
    picture = example.get("picture", "")
    facts["original"] = answers.get((ORIGINAL, None))
    facts["came_back"] = [_named(model) for model in models if _came_back(answers, model, attacks)]
    return facts | {"answers": rows, "picture": picture if picture.startswith(PICTURE) else ""}


def _came_back(answers: dict[tuple[str, str | None], Json], model: str, attacks: list[str]) -> bool:
    """Whether the unlearned model did not know the example, and knew it again after an attack."""
    before = answers.get((model, None))
    unlearned = model not in (ORIGINAL, REFERENCE) and before is not None and not before["knows"]
    return unlearned and any(answers[model, a]["knows"] for a in attacks if (model, a) in answers)


def _named(model: str) -> str:
    return NAMES.get(model, model).replace(" (reference)", "")


def _marked(answer: str, secret: str) -> Markup:
    """The answer, with the part that agrees with the secret, up to the first wrong letter, marked."""
    answer, secret = _line(answer), _line(secret)
    agrees = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, secret, strict=False)))
    return Markup("<mark>{}</mark>{}").format(answer[:agrees], answer[agrees:])


def _line(text: str) -> str:
    """The text on one line; line breaks and tabs become visible signs."""
    return text.translate({10: "\u21b5", 13: "\u21b5", 9: "\u2192"})
