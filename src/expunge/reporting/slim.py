"""Reduces matplotlib's SVG to about a tenth of its bytes.

Groups and ids without references are removed. Markers are written at their positions. Styles that the page's CSS sets
anyway are removed. Coordinates are relative, with one decimal of a point. Points on a straight line are removed.
Elements that several drawings of a page share, such as an axis or the retrained models' band, are written once.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

Style = dict[str, str]
Point = tuple[float, float]
Step = tuple[str, list[Point]]
"""A letter of an SVG path and the points that belong to it."""

DEFAULTS = {
    "path": {"fill": "none", "stroke-dashoffset": "0", "stroke-linejoin": "round", "stroke-linecap": "butt"},
    "text": {"font-size": "8px", "fill": "var(--quiet)", "text-anchor": "start"},
}
"""Styles that `page.css` sets for every path and text of a drawing."""
FLAT = 0.05
"""Largest distance in points of a removed point from the straight line: half the last decimal."""
WORTH = 60
"""Length in bytes above which a repeated element is written once and referred to."""
_XLINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Shape:
    """A path with its style and its clipping rectangle."""

    d: str
    style: str
    clip: str

    def element(self) -> str:
        """The SVG element."""
        clip = f' clip-path="url(#{self.clip})"' if self.clip else ""
        return f'<path d="{self.d}"{_attribute(self.style)}{clip}/>'


@dataclass
class Slimmer:
    """Collects the reduced elements of one figure."""

    root: ElementTree.Element
    elements: list[str] = field(default_factory=list)
    clips: dict[str, str] = field(default_factory=dict)
    """Id -> `clipPath` element. The id is a hash of the rectangle, so that drawings of one size share it."""
    _shapes: list[Shape] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_id = {e.get("id"): e for e in self.root.iter() if e.get("id")}

    def run(self) -> None:
        """Fill `elements` and `clips`."""
        self._walk(self.root, "")
        self._flush()

    def _walk(self, parent: ElementTree.Element, clip: str) -> None:
        for child in parent:
            kind = child.tag.rpartition("}")[2]
            inside = child.get("clip-path", clip)
            if kind == "g" and (child.get("id") or "").startswith("matplotlib.axis"):
                self._flush()
                self._axis(child)
            elif kind == "g":
                self._walk(child, inside)
            elif kind in ("path", "use"):
                self._shapes += self._shape(child, inside)
            elif kind == "text":
                self._flush()
                self.elements.append(_text(child))

    def _axis(self, group: ElementTree.Element) -> None:
        """One path per style, for grid lines and ticks, then the labels."""
        shapes = [s for e in group.iter() if e.tag.endswith(("}path", "}use")) for s in self._shape(e, "")]
        drawn = {shape.style: shape for shape in shapes}
        parts = [
            Shape("".join(s.d for s in shapes if s.style == style), style, shape.clip).element()
            for style, shape in drawn.items()
        ]
        parts += [_text(e) for e in group.iter() if e.tag.endswith("}text")]
        self.elements.append(f"<g>{''.join(parts)}</g>")

    def _flush(self) -> None:
        """Write the collected paths; consecutive strokes of one style become one path."""
        joined: list[Shape] = []
        for shape in self._shapes:
            last = joined[-1] if joined else None
            if last and (last.style, last.clip) == (shape.style, shape.clip) and "fill" not in shape.style:
                joined[-1] = Shape(last.d + shape.d, shape.style, shape.clip)
            else:
                joined.append(shape)
        self.elements += [shape.element() for shape in joined]
        self._shapes = []

    def _shape(self, element: ElementTree.Element, clip: str) -> Iterator[Shape]:
        style, at, source = _style(element), (0.0, 0.0), element
        if element.tag.endswith("}use"):
            source = self._by_id[(element.get(_XLINK) or element.get("href") or "#")[1:]]
            at = float(element.get("x", 0)), float(element.get("y", 0))
            style = {**style, **_style(source)}
        elif element.get("id"):
            return  # a definition, which `use` elements draw
        steps = _steps(source.get("d", ""), at)
        if sum(len(points) for _, points in steps) < 3:
            style["fill"] = "none"
        unseen = style.get("fill", "black") == "none" and style.get("stroke", "none") == "none"
        if unseen or not steps or style.get("opacity") == "0":
            return
        yield Shape(_path(_thinned(steps)), _spelled(style, "path"), self._clip(steps, clip))

    def _clip(self, steps: Sequence[Step], clip: str) -> str:
        """The id of the clipping rectangle, empty if the path lies inside it."""
        match = re.search(r"#([^)]+)", clip)
        if match is None:
            return ""
        rectangle = self._by_id[match[1]][0]
        x, y, width, height = (float(rectangle.get(name, 0)) for name in ("x", "y", "width", "height"))
        points = [point for _, group in steps for point in group]
        if all(x - 1 <= a <= x + width + 1 and y - 1 <= b <= y + height + 1 for a, b in points):
            return ""
        facts = f'x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}"'
        name = "c" + hashlib.sha256(facts.encode()).hexdigest()[:6]
        self.clips[name] = f'<clipPath id="{name}"><rect {facts}/></clipPath>'
        return name


def slim(svg: str) -> tuple[list[str], dict[str, str]]:
    """The reduced elements of a figure, in drawing order, and their clipping rectangles.

    Args:
        svg: The figure as matplotlib writes it, with text as text elements.

    Returns:
        Elements; id -> `clipPath` element.
    """
    slimmer = Slimmer(ElementTree.fromstring(svg))
    slimmer.run()
    return slimmer.elements, slimmer.clips


class Pieces:
    """The elements that the drawings of one page share."""

    def __init__(self, drawings: Iterable[Any]) -> None:
        """Find the elements that occur more than once; a drawing has `elements` and `clips`."""
        shown = list(drawings)
        counts = Counter(element for drawing in shown for element in drawing.elements)
        often = [element for element, count in counts.items() if count > 1 and len(element) > WORTH]
        self._names = {element: f"p{i}" for i, element in enumerate(often)}
        self._clips = {name: clip for drawing in shown for name, clip in drawing.clips.items()}

    def definitions(self) -> Markup:
        """The shared elements as a hidden SVG, which the page must hold once, before the drawings."""
        named = [f'<g id="{name}">{element}</g>' for element, name in self._names.items()]
        inner = "".join([*self._clips.values(), *named])
        return Markup(f'<svg class="pieces" aria-hidden="true"><defs>{inner}</defs></svg>' if inner else "")

    def svg(self, drawing: Any) -> Markup:
        """A drawing as SVG; shared elements are references to the definitions."""
        names = self._names
        inner = "".join(f'<use href="#{names[e]}"/>' if e in names else e for e in drawing.elements)
        return Markup(f'<svg viewBox="{drawing.view}" role="img" aria-label="{escape(drawing.label)}">{inner}</svg>')


def _style(element: ElementTree.Element) -> Style:
    pairs = (part.partition(":") for part in element.get("style", "").split(";") if part.strip())
    style = {key.strip(): value.strip() for key, _, value in pairs}
    # Before version 3.10 matplotlib wrote size and family as one property, `font`.
    size = re.search(r"[\d.]+px", style.pop("font", ""))
    return style | ({"font-size": size[0]} if size else {})


def _spelled(style: Style, kind: str) -> str:
    # A path without a fill is black in SVG, but not filled under the page's CSS.
    full = ({"fill": "black"} if kind == "path" else {}) | style
    left = {k: v for k, v in full.items() if k != "font-family" and DEFAULTS[kind].get(k) != v}
    return ";".join(f"{key}:{value}" for key, value in left.items())


def _attribute(style: str) -> str:
    return f' style="{style}"' if style else ""


def _text(element: ElementTree.Element) -> str:
    place = "".join(
        f' {name}="{_rounded(value)}"'
        for name in ("x", "y", "transform")
        if (value := element.get(name)) and not value.startswith("rotate(-0 ")
    )
    return (
        f"<text{place}{_attribute(_spelled(_style(element), 'text'))}>{escape(element.text or '', quote=False)}</text>"
    )


def _rounded(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda match: _number(float(match[0])), text)


def _number(value: float) -> str:
    """One decimal, without the zeros that SVG does not need."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else re.sub(r"^(-?)0\.", r"\1.", text)


def _steps(d: str, at: Point) -> list[Step]:
    """A path's steps, moved by `at`; matplotlib writes M, L, C, Q and z with absolute coordinates."""
    steps = []
    for letter, numbers in re.findall(r"([MLCQzZ])([^MLCQzZ]*)", d):
        values = [float(word) for word in numbers.split()]
        steps.append((letter, [(x + at[0], y + at[1]) for x, y in zip(values[::2], values[1::2], strict=True)]))
    return steps


def _thinned(steps: list[Step]) -> list[Step]:
    """The steps without points that lie on the straight line between their neighbours, to within `FLAT`."""
    kept: list[Step] = []
    left_out: list[Point] = []
    for (letter, points), after in zip(steps, [*steps[1:], None], strict=True):
        if letter == "L" and after and after[0] == "L" and kept and kept[-1][1]:
            left_out += points
            if all(_off(point, kept[-1][1][-1], after[1][0]) <= FLAT for point in left_out):
                continue
        kept.append((letter, points))
        left_out = []
    return kept


def _off(point: Point, start: Point, end: Point) -> float:
    """Distance of a point from a segment."""
    (px, py), (ax, ay), (bx, by) = point, start, end
    length = (bx - ax) ** 2 + (by - ay) ** 2
    share = 0.0 if not length else min(max(((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length, 0.0), 1.0)
    return math.hypot(px - ax - share * (bx - ax), py - ay - share * (by - ay))


def _path(steps: Sequence[Step]) -> str:
    """The path in short form: relative coordinates, but an absolute first point, so that paths can be joined."""
    words, here, start, last = [], (0.0, 0.0), (0.0, 0.0), ""
    for letter, points in steps:
        rounded = [(round(x, 1), round(y, 1)) for x, y in points]
        if letter in "zZ":
            words.append("z")
            here, last = start, "z"
            continue
        base = (0.0, 0.0) if letter == "M" else here
        numbers = [_number(value - origin) for point in rounded for value, origin in zip(point, base, strict=True)]
        name = "M" if letter == "M" else letter.lower()
        text = numbers[0] + "".join(n if n.startswith("-") else f" {n}" for n in numbers[1:])
        repeated = name == last and name != "M"
        words.append(("" if text.startswith("-") else " ") + text if repeated else name + text)
        here, last = rounded[-1], name
        start = here if letter == "M" else start
    return "".join(words)
