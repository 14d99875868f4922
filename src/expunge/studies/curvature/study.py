"""Does an edit of weights by curvature remove what was memorised, from a small GPT and from nets with wrong labels?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from expunge.base.part import Count
from expunge.evidence.claim import Claim, Measured
from expunge.evidence.figure import Chart, Figure, Grid, Series
from expunge.studies.curvature import label_claims, labels, language, language_claims, pretrained
from expunge.studies.curvature.suite import JUDGED, RULE, SuiteSizes, suite
from expunge.study.claims import read_claims
from expunge.study.read import array
from expunge.study.study import Preset, Study, Work

QUICK = {
    "text": 60,
    "planted": 4,
    "rows": 40,
    "judged": 6,
    "width": 16,
    "layers": 1,
    "steps": 4,
    "tries": 1,
    "again": 2,
    "strengths": 3,
    "factors": 60,
    "images": 300,
    "holdout": 200,
    "tests": 200,
    "epochs": 2,
    "vit": True,
    "rules": True,
    "siblings": True,
}
LONG = {
    "vit": True,
    "rules": True,
    "siblings": True,
    "steps": 6000,
    "images": 8000,
    "holdout": 2000,
    "model": "examples/smollm2/model",
}


@dataclass(frozen=True)
class CurvatureStudy(Study):
    """Curvature of memorisation: removed by an edit, at what price, and for which tasks."""

    cite: ClassVar[str] = "merullo2025spectrum"
    paper: ClassVar[str] = "Spectrum of loss curvature, 2025"
    claims: ClassVar[tuple[Claim, ...]] = read_claims(__file__)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset((0,), QUICK),
        "cpu": Preset(tuple(range(6))),
        "long": Preset(tuple(range(10)), LONG),
        "paper": Preset((0,), lacks="OLMo-2-7B, its training text, and ImageNet"),
    }

    text: Count = 2000
    """Training windows of real text."""
    planted: Count = 24
    """Planted sequences of each family."""
    rows: Count = 1500
    """Training rows of each task."""
    judged: Count = 80
    """Judged instances of each task, and windows for validation and for tests."""
    width: Count = 64
    """Width of the GPT."""
    layers: Count = 2
    """Blocks of the GPT."""
    steps: Count = 2500
    """Training steps of the GPT."""
    factors: Count = 1200
    """Rows that factors of the GPT are measured on."""
    tries: Count = 8
    """Settings of BalancedSubnet to choose from, on text and on images; 8 at most."""
    again: Count = 60
    """Steps of fine-tuning after an edit of the GPT."""
    strengths: Count = 19
    """Strengths of each rule to choose the most accurate edit of the MLP from."""
    images: Count = 6000
    """Training images."""
    holdout: Count = 4000
    """Unseen images for factors and for the choice of rho; 10,000 with the training images at most."""
    tests: Count = 2000
    """Test images."""
    epochs: Count = 60
    """Training epochs of classifiers."""
    rules: bool = False
    """Whether the rule language is among the tasks of the GPT."""
    siblings: bool = False
    """Whether the siblings of BalancedSubnet are run on the GPT, too."""
    vit: bool = False
    """Whether the ViT is trained and edited, too."""
    model: str = ""
    """Folder of a pretrained language model of which one block is edited, relative to the working folder; none if
    empty. `examples/smollm2.py` makes that of the preset `long`."""

    def measure(self, seed: int, work: Work, basis: Mapping[str, Any]) -> Measured:
        """Train a GPT and a classifier of a seed, edit both, and measure."""
        torch.set_num_threads(1)
        counts = SuiteSizes(self.text, self.planted, self.rows, self.judged, self.rules)
        gpt = language.trained(suite(seed, counts), seed, self.width, self.layers, self.steps)
        text = language_claims.measured(gpt, self.factors, self.tries, self.again, siblings=self.siblings)
        classifier = labels.trained(labels.PERCEPTRON, seed, self.sizes, self.epochs)
        image = label_claims.measured(classifier, self.strengths, self.tries)
        return joined(text, image) | self._transformer(seed) | self._pretrained(seed)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Images for training, held out, and for tests."""
        return self.images, self.holdout, self.tests

    def _transformer(self, seed: int) -> dict[str, Any]:
        if not self.vit:
            return {}
        vit = labels.trained(labels.TRANSFORMER, seed, self.sizes, self.epochs)
        return array("vit_labels_removed", label_claims.bounds(vit, self.strengths, 0.15, 0.03))

    def _pretrained(self, seed: int) -> dict[str, Any]:
        return {"pretrained": pretrained.edited_in(self.model, seed)} if self.model else {}

    def figures(self, seeds: Mapping[int, Measured], basis: Mapping[str, Any]) -> list[Figure]:
        """Recitation against perplexity, what tasks keep, and the table of labels."""
        tables = [_pretrained(seeds)] if "pretrained" in next(iter(seeds.values())) else []
        return [_pareto(seeds), _tasks(seeds), _labels(seeds), *tables]


def joined(text: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of both parts; claims that are about both become arrays."""
    parts = ("bounds", "sharp", "cheap", "inputs suffice", "stays")
    measured = {name: value for of in (text, image) for name, value in of.items() if name not in parts}
    bounds = {f"text, {name}": value for name, value in text["bounds"].items()}
    bounds |= {f"labels, {name}": value for name, value in image["bounds"].items()}
    stays = {f"text, {name}": value for name, value in text["stays"].items()}
    measured |= array("memorised_removed", bounds)
    measured |= array("premise_sharp", {**image["sharp"], **text["sharp"]})
    measured |= array("cheap", {**text["cheap"], **image["cheap"]})
    measured |= array("inputs_suffice", {**image["inputs suffice"], "recitation": text["inputs suffice"]})
    measured |= array("stays_removed", {**stays, "wrong labels": image["stays"]})
    detected = {"text": measured.pop("detected in text"), "labels": measured.pop("detected in labels")}
    return measured | array("detected", detected)


def _mean(seeds: Mapping[int, Measured], *names: str) -> float:
    """The mean over seeds of a number inside tables."""
    values = []
    for measured in seeds.values():
        value: Any = measured
        for name in names:
            value = value[name]
        values.append(value)
    return float(np.mean(values))


def _pareto(seeds: Mapping[int, Measured]) -> Chart:
    """One line a rule."""
    reports = next(iter(seeds.values()))["reports"]
    lines = []
    for rule, of in reports.items():
        if rule == "none":
            continue
        points = []
        for rise in of:
            families = ("salad tuned", "salad", "quote", "quote")
            left = np.mean([_mean(seeds, "reports", rule, rise, family) for family in families])
            points.append((_mean(seeds, "reports", rule, rise, "perplexity"), float(left)))
        x, y = zip(*sorted(points), strict=True)
        lines.append(Series(rule, x, y))
    return Chart("Recitation left", "rise of test perplexity, share", "share recited", tuple(lines))


def _tasks(seeds: Mapping[int, Measured]) -> Grid:
    """Every rule at a rise of 20 %; the first row is the model before the edit."""
    reports = next(iter(seeds.values()))["reports"]
    tasks = (*JUDGED, RULE) if RULE in reports["none"]["0"] else JUDGED
    columns = (*tasks, "salad tuned", "salad", "quote")
    rules = [rule for rule, of in reports.items() if rule == "none" or "0.2" in of]
    rows = tuple(
        tuple(_mean(seeds, "reports", rule, "0" if rule == "none" else "0.2", task) for task in columns)
        for rule in rules
    )
    for name in ("plain", "protected"):
        rules.append("kfac, factors of text" + (" and sums" if name == "protected" else ""))
        rows += (tuple(_mean(seeds, "other factors", name, task) for task in columns),)
    return Grid("Exact accuracy at a rise of perplexity of 20 %", "task", "rule", columns, tuple(rules), rows)


def _labels(seeds: Mapping[int, Measured]) -> Grid:
    """Each rule with the smallest rho that costs no validation accuracy."""
    rules = tuple(next(iter(seeds.values()))["label rows"])
    columns = ("wrong", "true", "validation", "test")
    rows = tuple(tuple(_mean(seeds, "label rows", rule, column) for column in columns) for rule in rules)
    return Grid("Labels that the MLP gives", "share", "rule", columns, rules, rows)


def _pretrained(seeds: Mapping[int, Measured]) -> Grid:
    """Each rule at the same perplexity of held text, before and after fine-tuning."""
    first: Any = next(iter(seeds.values()))["pretrained"]
    columns = tuple(first["none"])
    rows = tuple(tuple(_mean(seeds, "pretrained", rule, column) for column in columns) for rule in first)
    return Grid("A pretrained model", "task", "rule", columns, tuple(first), rows)
