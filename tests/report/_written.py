"""A small finished run made from numbers that are chosen, so that what the reports must say is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save

from expunge.base.manifest import RULES, Manifest, read_manifest, write_manifest
from expunge.base.record import file_digest, rows_to_text
from expunge.evidence.scores import Scores, dumps
from expunge.evidence.table import read_table, verdicts_text

Json = dict[str, Any]
FORGET, TEST = 200, 1000
KNOWN = {"original": (1.0, None), "reference": (0.1, 0.1), "clean": (0.1, 0.1), "hidden": (0.2, 0.9)}
"""Model -> share of the forget set that is known, before and after the attack."""


def column(rate: float, n: int) -> np.ndarray:
    return (np.arange(n) < round(rate * n)).astype(np.float64)


def accuracy(split: str, rate: float) -> Scores:
    n, role = (FORGET, "knowledge") if split == "forget" else (TEST, "utility" if split == "test" else "description")
    better = "reference" if split == "forget" else "higher"
    return Scores(
        "accuracy", split, column(rate, n), np.arange(n), role, "share", better,  # type: ignore[arg-type]
        required=role == "knowledge",
    )  # fmt: skip


def path_losses(split: str, peak: float) -> Scores:
    t = np.linspace(0, 1, 5)
    return Scores(
        "barrier", split, 4 * peak * t * (1 - t), np.arange(5), "predictor", "nats", "reference", reduce="barrier"
    )


def distance(value: float) -> Scores:
    return Scores(
        "l2_distance", "weights", np.array([value]), np.zeros(1), "predictor", "weight", "reference", reduce="single"
    )


def weights(model: str, seed: int) -> dict[str, np.ndarray]:
    """Places at the corners of a rectangle of 3 x 4, wherever the seed puts it; running statistics do not count."""
    x, y = {"original": (0, 0), "reference": (3, 0), "clean": (3, 4), "hidden": (0, 4)}.get(model, (0, 0))
    return {
        "layer.weight": np.array([[x + seed, y]], dtype=np.float32),
        "norm.running_mean": np.array([100.0 * x], dtype=np.float32),
    }


class Writer:
    """Writes a run's folder as the pipeline does, from scores given."""

    def __init__(self, root: Path, known: Json, seeds: list[int], attacks: list[str], **facts: Any) -> None:
        self.root, self.stages = root, []
        self.known, self.seeds, self.attacks = known, seeds, attacks
        self.destroying = facts.pop("destroying", ())
        self.facts = {"required": [], "about_one_model": False, "rules": RULES} | facts

    def stage(self, kind: str, model: str, seed: int, attack: str | None, part: str, **files: bytes) -> None:
        words = [model, f"s{seed}", attack, part if kind == "audit" else None]
        name = "-".join(word for word in words if word)
        held = {}
        for folder, content in files.items():
            path = self.root / folder / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            held[folder] = {"path": f"{folder}/{path.name}", "sha256": file_digest(path)}
        gradients = {"original": 1000, "reference": 800, "unlearn": 40, "attack": 100}.get(kind, 0)
        entry = {"kind": kind, "model": model, "seed": seed, "attack": attack, "part": part, "key": name}
        self.stages.append(entry | {"gradients": gradients, "seconds": 1.5, "files": held})

    def model(self, model: str, seed: int) -> None:
        before, after = self.known[model]
        kind = model if model in ("original", "reference") else "unlearn"
        self.stage(kind, model, seed, None, model, models=save(weights(model, seed)))
        found = [accuracy("forget", before), accuracy("retain", 0.99), accuracy("test", 0.9)]
        self.stage("audit", model, seed, None, "accuracy", scores=dumps(found))
        self.stage("audit", model, seed, None, "distance", scores=dumps([distance(2.0 + 0.1 * seed)]))
        losses = [path_losses("retain", 0.5), path_losses("forget", 1.0 + 0.1 * seed)]
        self.stage("audit", model, seed, None, "path", scores=dumps(losses))
        for attack in self.attacks if after is not None else ():
            steps = np.array([0, 4, 8 + seed])  # the last step differs with the size of a seed's retain set
            values = np.stack([column(rate, FORGET) for rate in (before, (before + after) / 2, after)])
            self.stage("attack", model, seed, attack, attack, curves=save({"steps": steps, "values": values}))
            # An attack does a little harm, or leaves no model with anything.
            useful = 0.1 if attack in self.destroying else 0.899
            scores = [accuracy("forget", after), accuracy("test", useful)]
            self.stage("audit", model, seed, attack, "accuracy", scores=dumps(scores))

    def finish(self) -> Path:
        for seed in self.seeds:
            for model in self.known:
                alone = self.facts["about_one_model"] and model != "reference" and seed != self.seeds[0]
                if not alone:
                    self.model(model, seed)
        head = {"models": list(self.known), "seeds": self.seeds, "attacks": self.attacks}
        manifest = msgspec.convert({"versions": {}} | head | self.facts | {"stages": self.stages}, Manifest)
        table = read_table(self.root, manifest)
        self.write("results.jsonl", rows_to_text(table.rows()))
        self.write("verdicts.json", verdicts_text(table))
        self.write("spec.json", json.dumps(self.spec()))
        packages = {"expunge": "0.1.0", "torch": "2.6.0"}
        self.write(
            "env.json",
            json.dumps({"python": "3.11.0", "system": "Linux", "machine": "x", "packages": packages, "commit": None}),
        )
        names = ("spec.json", "env.json", "results.jsonl", "verdicts.json")
        digests = {name: file_digest(self.root / name) for name in names}
        write_manifest(self.root, msgspec.structs.replace(manifest, files=digests))
        return self.root

    def write(self, name: str, text: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text, encoding="utf-8")

    def spec(self) -> Json:
        methods = [m for m in self.known if m not in ("original", "reference")]
        return {
            "name": self.root.name,
            "seeds": self.seeds,
            "threads": 1,
            "data": {"name": "digits", "train": 400, "test": None},
            "model": {"name": "mlp", "widths": [32], "dropout": 0.0},
            "train": {"learning_rate": 1e-5, "clip": None},
            "forget": {"name": "indices", "file": 'a <b>bold</b> "name" & more'},
            "method": [{"name": "random_relabel", "label": m, "epochs": 3, "budget": None} for m in methods],
            "attack": [{"name": "relearn", "label": a} for a in self.attacks],
            "audit": [{"name": "path", "points": 5, "required": False}],
            "gate": [],
        }


def accept_digest(folder: Path, *names: str) -> None:
    """Put the digests of changed files into the manifest, as a careful forger would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for file in (file for stage in manifest["stages"] for file in stage["files"].values()):
        if file["path"] in names:
            file["sha256"] = file_digest(folder / file["path"])
    for name in manifest["files"].keys() & set(names):
        manifest["files"][name] = file_digest(folder / name)
    path.write_text(json.dumps(manifest))


def judge_again(folder: Path) -> None:
    """Write the rows and verdicts of changed scores, and all digests, as a run with these scores would."""
    accept_digest(folder, *dict(read_manifest(folder).digests()))
    table = read_table(folder, read_manifest(folder))
    (folder / "results.jsonl").write_text(rows_to_text(table.rows()))
    (folder / "verdicts.json").write_text(verdicts_text(table))
    accept_digest(folder, "results.jsonl", "verdicts.json")
