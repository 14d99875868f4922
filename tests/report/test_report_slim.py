"""What is drawn is what matplotlib drew, in fewer bytes; and a page of many methods stays small."""

from __future__ import annotations

import io
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from _written import Writer, accuracy, distance, judge_again, path_losses
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from safetensors.numpy import save

from expunge.evidence.scores import Scores, dumps
from expunge.reporting.compare import Pair
from expunge.reporting.compare_page import write_comparison
from expunge.reporting.page import write_report
from expunge.reporting.slim import FLAT, Pieces, slim
from expunge.reporting.svg import METHOD, Drawing, drawing, panel

METHODS = [f"method_{i}" for i in range(20)]
ATTACKS = ["relearn", "relearn_hot", "relearn_k10", "quantise"]
STEPS = 25
LIMIT = 700_000
"""Bytes: a page must stay below 1 MB, with room for pictures of forget examples."""


def vertices(d: str) -> np.ndarray:
    """The points of a path of lines, written with relative coordinates after each M, in the drawing's own."""
    found: list[tuple[float, float]] = []
    for letter, rest in re.findall(r"([Ml])([^MlLz]*)", d):
        numbers = [float(word) for word in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", rest)]
        for x, y in zip(numbers[::2], numbers[1::2], strict=True):
            base = (0.0, 0.0) if letter == "M" else found[-1]
            found.append((base[0] + x, base[1] + y))
    return np.array(found)


def lines(elements: list[str]) -> list[np.ndarray]:
    found = [re.search(r' d="([^"]*)"', e) for e in elements if "var(--method)" in e and e.startswith("<path")]
    return [vertices(d[1]) for d in found if d]


def test_a_line_is_where_it_was() -> None:
    rng = np.random.default_rng(0)
    x, y = np.arange(40.0), rng.normal(size=40).cumsum()
    figure, axes = panel()
    axes.plot(x, y, color=METHOD)
    [line] = lines(drawing(figure, axes, "a walk", []).elements)
    wanted = axes.transData.transform(np.column_stack([x, y]))
    wanted[:, 1] = figure.get_figheight() * 72 - wanted[:, 1]
    share = np.linspace(0, 1, 1001)[:, None]
    dense = np.concatenate([a + share * (b - a) for a, b in pairwise(line)])
    far = np.linalg.norm(wanted[:, None] - dense[None], axis=2).min(axis=1)
    # Half a last decimal in either direction, and what may be left out of a straight line.
    assert far.max() < math.hypot(0.05, 0.05) + FLAT and len(line) > 30


def test_points_on_a_straight_line_are_left_out() -> None:
    figure, axes = panel()
    axes.plot(np.arange(60), np.minimum(np.arange(60), 20), color=METHOD)
    [line] = lines(drawing(figure, axes, "a ramp", []).elements)
    assert len(line) == 3


def test_markers_stand_where_they_stood_and_need_no_id() -> None:
    figure, axes = panel()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    axes.scatter([2], [7], 40, METHOD, marker="D", linewidths=0)
    [marker] = lines(drawing(figure, axes, "a diamond", []).elements)
    x, y = axes.transData.transform((2, 7))
    # Its corners lie around its place.
    middle = (marker.min(axis=0) + marker.max(axis=0)) / 2
    np.testing.assert_allclose(middle, [x, figure.get_figheight() * 72 - y], atol=0.1)
    assert 4 < np.ptp(marker[:, 0]) < 12


def test_only_what_leaves_the_axes_is_cut() -> None:
    figure, axes = panel()
    axes.plot([0, 1], [0.2, 0.4], color=METHOD)
    axes.plot([0, 1, 2], [0.5, 3, 0.5], color=METHOD)
    axes.set_ylim(0, 1)
    found = drawing(figure, axes, "cut", [])
    inside, outside = (e for e in found.elements if "var(--method)" in e)
    assert "clip-path" not in inside
    [clip] = found.clips
    assert f'clip-path="url(#{clip})"' in outside and f'id="{clip}"' in Pieces([found]).definitions()


def test_sizes_and_colours_of_text_survive() -> None:
    figure = Figure()
    FigureCanvasSVG(figure)
    figure.text(0.5, 0.5, "a < b & c", fontsize=13, color="#123456", rotation=30)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    [text] = [e for e in slim(buffer.getvalue())[0] if e.startswith("<text")]
    assert "font-size:13px" in text and "fill:#123456" in text and "rotate(-30)" in text
    assert text.endswith(">a &lt; b &amp; c</text>") and "font-family" not in text


def test_what_drawings_share_is_written_once() -> None:
    def one(level: float) -> Drawing:
        figure, axes = panel()
        axes.plot([0, 1], [0, level], color=METHOD)
        axes.set_ylim(0, 1)
        axes.set_xlabel("the same of both")
        return drawing(figure, axes, f"level {level}", [])

    first, second = one(0.3), one(0.7)
    pieces = Pieces([first, second])
    both = [str(pieces.svg(first)), str(pieces.svg(second))]
    assert pieces.definitions().count("the same of both") == 1
    assert all("the same of both" not in svg and "<use" in svg for svg in both)
    # What is drawn is the same as alone.
    names = dict(re.findall(r'<g id="(p\d+)">(.*?)</g>(?=<g id|</defs>)', pieces.definitions()))
    for found, svg in zip((first, second), both, strict=True):
        whole = re.sub(r'<use href="#(p\d+)"/>', lambda use: names[use[1]], svg)
        assert whole == str(Pieces([found]).svg(found))


class Large(Writer):
    """Twenty methods, four attacks, five audits, three seeds: every value another one."""

    def model(self, model: str, seed: int) -> None:
        rng = np.random.default_rng([len(self.stages), seed])
        kind = model if model in ("original", "reference") else "unlearn"
        place = {"layer.weight": rng.normal(size=8).astype(np.float32)}
        self.stage(kind, model, seed, None, model, models=save(place))
        losses = [path_losses(split, rng.random()) for split in ("retain", "forget")]
        self.stage("audit", model, seed, None, "distance", scores=dumps([distance(rng.random())]))
        self.stage("audit", model, seed, None, "path", scores=dumps(losses))
        self._audits(model, seed, None, rng)
        for attack in self.attacks if model != "original" else ():
            values = rng.random((STEPS, 40)) < rng.random((STEPS, 1))
            curve = {"steps": np.arange(STEPS), "values": values.astype(np.float64)}
            self.stage("attack", model, seed, attack, attack, curves=save(curve))
            self._audits(model, seed, attack, rng)

    def _audits(self, model: str, seed: int, attack: str | None, rng: np.random.Generator) -> None:
        known = [accuracy(split, rng.random()) for split in ("forget", "retain", "test")]
        self.stage("audit", model, seed, attack, "accuracy", scores=dumps(known))
        for name in ("membership", "probe", "loss"):
            values, ids = rng.random(40), np.arange(40)
            found = Scores(name, "forget", values, ids, "knowledge", "share", "reference")
            self.stage("audit", model, seed, attack, name, scores=dumps([found]))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    known = dict.fromkeys(["original", "reference", *METHODS], (0, 0))
    return Large(tmp_path_factory.mktemp("runs") / "large", known, [0, 1, 2], ATTACKS).finish()


def test_twenty_methods_under_four_attacks_have_a_small_page(large: Path) -> None:
    page = write_report(large).read_text(encoding="utf-8")
    # A curve for each method and attack; for each of 21 models its path and its losses; the trade-off and the map.
    assert page.count('role="img"') == 20 * 4 + 2 * 21 + 2
    assert len(page.encode()) < LIMIT
    # An axis is written once for an attack, and an attack of as many steps as another shares it.
    assert 1 <= page.count(">steps of the attack</text>") <= 4


def test_twenty_methods_twice_have_a_small_page(large: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(large, other)
    rng = np.random.default_rng(1)
    for path in (other / "curves").iterdir():
        curve = {"steps": np.arange(STEPS), "values": (rng.random((STEPS, 40)) < 0.5).astype(np.float64)}
        path.write_bytes(save(curve))
    judge_again(other)
    page = write_comparison(Pair.open(large, other), tmp_path / "compare.html").read_text(encoding="utf-8")
    assert page.count('role="img"') == 20 * 4
    assert len(page.encode()) < LIMIT
