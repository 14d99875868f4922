"""The page of a real run in a real browser: it opens without an error, without a network, and its tables sort."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from expunge.base.spec import parse
from expunge.pipeline.run import run
from expunge.reporting.doctor import browser
from expunge.reporting.page import write_report

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=5000",
)
SORT_TWICE = """
<script>
const head = document.querySelector("table.sortable th:nth-child(2)");
const read = () => [...document.querySelectorAll("table.sortable:first-of-type")][0];
const column = () => [...read().tBodies[0].rows].map((row) => row.cells[1].dataset.sort).join(" ");
head.querySelector("button").click();
document.body.dataset.up = column() + " " + head.getAttribute("aria-sort");
head.querySelector("button").click();
document.body.dataset.down = column() + " " + head.getAttribute("aria-sort");
document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
</script>
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = browser()
    if found is None:
        message = "no Chromium on this machine: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = {
        "name": "seen",
        "seeds": [0, 1, 2],
        "data": {"name": "digits", "train": 150, "test": 60},
        "model": {"name": "mlp", "widths": [16]},
        "train": {"epochs": 6, "learning_rate": 0.01},
        "forget": {"name": "label_swap", "count": 15},
        "method": [{"name": "retrain"}, {"name": "random_relabel", "epochs": 2}],
        "attack": [{"name": "relearn", "epochs": 2}],
        "audit": [{"name": "loss"}, {"name": "distance"}, {"name": "path", "points": 5}],
    }
    folder = tmp_path_factory.mktemp("runs")
    return write_report(run(parse(table, folder), folder).folder)


def opened(chromium: str, path: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """The page's elements after its scripts ran, and what the browser logged."""
    command = [chromium, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


def test_it_opens_without_an_error_and_without_a_network(chromium: str, page: Path, tmp_path: Path) -> None:
    dom, log = opened(chromium, page, tmp_path)
    assert console(log) == []
    assert "http:" not in dom and "https:" not in dom
    assert page.stat().st_size < 1_000_000
    assert dom.count("<article") == 2
    assert dom.count("<svg") == 2 + 1 + 1 + 3


def test_console_errors_would_be_seen(chromium: str, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace("</body>", "<script>missing();</script></body>"))
    _, log = opened(chromium, broken, tmp_path / "profile")
    assert any("missing is not defined" in line for line in console(log))


@pytest.mark.parametrize("size", ["1200,900", "500,900"])
def test_tables_sort_and_nothing_is_wider_than_the_window(chromium: str, page: Path, tmp_path: Path, size: str) -> None:
    clicking = tmp_path / "clicking.html"
    clicking.write_text(page.read_text(encoding="utf-8").replace("</body>", SORT_TWICE + "</body>"))
    dom, log = opened(chromium, clicking, tmp_path / "profile", f"--window-size={size}")
    assert console(log) == []
    found = dict(re.findall(r'data-(up|down|wide)="([^"]*)"', dom))
    *up, rising = found["up"].split()
    *down, falling = found["down"].split()
    assert (rising, falling) == ("ascending", "descending")
    assert [float(x) for x in up] == sorted(float(x) for x in up)
    assert [float(x) for x in down] == sorted((float(x) for x in up), reverse=True)
    assert found["wide"] == "0"
