"""Every page in a real browser: no error, no network; sorting, filter, values and keys work; it fits and prints."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from headless import Open, browse, console

from expunge.reporting.doctor import browser

PAGES = ("report", "notebook", "compare")
SORT_TWICE = """
const table = [...document.querySelectorAll("table.sortable")].at(%d), last = table.tHead.rows[0].cells.length - 1;
const head = table.tHead.rows[0].cells[%d < 0 ? last : %d], at = head.cellIndex;
const column = () => [...table.tBodies[0].rows].map((row) => (row.cells[at].dataset.sort ?? row.cells[at].firstChild?.data ?? "") || "none").join(" ");
head.querySelector("button").click();
tell("up", column() + " " + head.getAttribute("aria-sort"));
head.querySelector("button").click();
tell("down", column() + " " + head.getAttribute("aria-sort"));
"""
FILTER = """
const box = document.querySelector(".filter"), field = box.querySelector("input");
const rows = () => [...box.parentElement.querySelector(".filter ~ .scroll").querySelectorAll("tbody tr")].filter((row) => !row.hidden);
const type = (text) => { field.value = text; field.dispatchEvent(new Event("input")); };
tell("all", rows().length);
type("LOSS  forget");
tell("some", rows().map((row) => [...row.cells].map((cell) => cell.textContent).join(" ")).join("|"));
tell("count", box.querySelector("output").textContent);
type("nothing-like-it");
tell("none", rows().length);
field.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
tell("again", rows().length);
"""
VALUES = """
const holder = document.querySelector(".chart"), told = holder.closest("figure").querySelector(".readout");
const rest = told.textContent, { form, stops } = JSON.parse(document.getElementById("charts").textContent)[holder.dataset.chart];
const words = (text) => text.split(" ").reduce((told, number) => told.replace("{}", number), form);
tell("texts", JSON.stringify(stops.map((stop) => words(stop[2]))));
const svg = holder.querySelector("svg"), over = (i) => {
  const place = new DOMPoint(stops[i][0] + 1, stops[i][1]).matrixTransform(svg.getScreenCTM());
  holder.dispatchEvent(new PointerEvent("pointermove", { clientX: place.x, clientY: place.y }));
  return told.textContent;
};
tell("over", JSON.stringify([over(0), over(1), over(stops.length - 1)]));
holder.dispatchEvent(new PointerEvent("pointerleave"));
tell("left", told.textContent === rest);
holder.focus();
tell("focused", document.activeElement === holder);
const press = (key) => { holder.dispatchEvent(new KeyboardEvent("keydown", { key })); return told.textContent; };
tell("pressed", JSON.stringify(["ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home"].map(press)));
press("Escape");
tell("escaped", told.textContent === rest);
tell("live", told.getAttribute("aria-live"));
"""
PLAIN = "tell('wide', document.documentElement.scrollWidth - document.documentElement.clientWidth);"


@pytest.mark.parametrize("name", PAGES)
def test_it_opens_without_an_error_and_without_a_network(open_page: Open, pages: dict[str, Path], name: str) -> None:
    script = "setTimeout(() => tell('requests', performance.getEntriesByType('resource')"
    script += ".filter((entry) => !entry.name.startsWith('data:')).length), 500);"
    found, log = open_page(pages[name], script)
    assert console(log) == []
    assert found["requests"] == "0"
    text = pages[name].read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "default-src 'none'" in text
    assert len(text.encode()) < 1_000_000


def test_console_errors_and_requests_would_be_seen(open_page: Open, pages: dict[str, Path]) -> None:
    _, log = open_page(pages["report"], "missing();")
    assert any("missing is not defined" in line for line in console(log))
    _, log = open_page(pages["report"], "document.body.append(Object.assign(new Image(), { src: 'other.png' }));")
    assert any("Content Security Policy" in line for line in console(log))


@pytest.mark.parametrize(("name", "table", "column"), [("report", 0, 1), ("report", -1, 2), ("compare", 0, -1)])
def test_tables_sort(open_page: Open, pages: dict[str, Path], name: str, table: int, column: int) -> None:
    found, log = open_page(pages[name], SORT_TWICE % (table, column, column))
    assert console(log) == []
    *up, rising = found["up"].split()
    *down, falling = found["down"].split()
    assert (rising, falling) == ("ascending", "descending")
    # What was not measured stays below in both directions.
    known, missing = ([x for x in up if (x == "none") == absent] for absent in (False, True))
    ordered = sorted(map(float, known))
    assert [x if x == "none" else float(x) for x in up] == [*ordered, *missing]
    assert [x if x == "none" else float(x) for x in down] == [*ordered[::-1], *missing]
    assert len(set(known)) > 1


@pytest.mark.parametrize("name", PAGES)
def test_the_filter_keeps_rows_that_have_every_word(open_page: Open, pages: dict[str, Path], name: str) -> None:
    found, log = open_page(pages[name], FILTER)
    assert console(log) == []
    some = found["some"].split("|")
    assert 0 < len(some) < int(found["all"]) == int(found["again"])
    assert all("loss" in words and "forget" in words for words in some)
    assert found["count"] == f"{len(some)} of {found['all']} rows"
    assert found["none"] == "0"


@pytest.mark.parametrize("name", PAGES)
def test_values_are_told_to_a_pointer_and_to_keys(open_page: Open, pages: dict[str, Path], name: str) -> None:
    found, log = open_page(pages[name], VALUES)
    assert console(log) == []
    texts, over, pressed = (json.loads(html.unescape(found[key])) for key in ("texts", "over", "pressed"))
    assert len(texts) > 2 and all(text.startswith("step ") and " %" in text for text in texts)
    assert over == [texts[0], texts[1], texts[-1]]
    assert pressed == [texts[0], texts[1], texts[0], texts[-1], texts[-1], texts[0]]
    assert {found[key] for key in ("left", "focused", "escaped")} == {"true"}
    assert found["live"] == "polite"


@pytest.mark.parametrize("name", PAGES)
def test_everything_that_can_be_done_can_be_reached_by_keys(open_page: Open, pages: dict[str, Path], name: str) -> None:
    script = """
    const all = [...document.querySelectorAll("th button, summary, .filter input, .chart, .scroll")];
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    tell("lost", all.filter((one) => { one.focus(); return document.activeElement !== one; }).length);
    tell("there", all.length);
    """
    found, _ = open_page(pages[name], script)
    assert found["lost"] == "0" and int(found["there"]) > 10


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 700, 1200])
def test_nothing_is_wider_than_the_window(
    open_page: Open, pages: dict[str, Path], tmp_path: Path, name: str, width: int
) -> None:
    # A window is never narrower than 500 pixels; a frame is.
    outer = tmp_path / "outer.html"
    text = html.escape(pages[name].read_text(encoding="utf-8"))
    outer.write_text(f'<!doctype html><body><iframe width="{width}" height="900" srcdoc="{text}"></iframe></body>')
    script = """
    document.querySelector("iframe").addEventListener("load", (event) => {
      const root = event.target.contentDocument.documentElement;
      event.target.contentDocument.querySelectorAll("details").forEach((part) => { part.open = true; });
      tell("wide", root.scrollWidth - root.clientWidth);
      tell("client", root.clientWidth);
    });
    """
    found, _ = open_page(outer, script, "--window-size=1400,1000")
    assert found["wide"] == "0"
    assert width - 20 <= int(found["client"]) <= width


@pytest.mark.parametrize(("theme", "dark"), [("", False), ("--blink-settings=preferredColorScheme=0", True)])
def test_light_and_dark_are_readable(open_page: Open, pages: dict[str, Path], theme: str, dark: bool) -> None:
    script = """
    const style = (one) => getComputedStyle(one), light = (text) => {
      const [r, g, b] = text.match(/[\\d.]+/g).map((part) => (part / 255 <= 0.04045 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = light(style(document.body).backgroundColor);
    const contrast = (text) => (Math.max(light(text), paper) + 0.05) / (Math.min(light(text), paper) + 0.05);
    tell("paper", paper);
    tell("least", Math.min(...[...document.querySelectorAll("p, td, th, h1, .flag, .quiet, small, figcaption")].map((one) => contrast(style(one).color))));
    tell("drawn", Math.min(...[...document.querySelectorAll("svg text")].map((one) => contrast(style(one).fill))));
    """
    found, _ = open_page(pages["report"], script, *([theme] if theme else []))
    assert (float(found["paper"]) < 0.2) == dark
    # WCAG 2.2, level AA for text.
    assert float(found["least"]) >= 4.5 and float(found["drawn"]) >= 4.5


@pytest.mark.parametrize("name", PAGES)
def test_it_prints(chromium: str, pages: dict[str, Path], tmp_path: Path, name: str) -> None:
    target = tmp_path / "page.pdf"
    browse(chromium, tmp_path, pages[name], f"--print-to-pdf={target}", "--no-pdf-header-footer")
    content = target.read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 2


def test_the_browser_is_the_one_that_the_doctor_finds(chromium: str) -> None:
    assert chromium == browser()
