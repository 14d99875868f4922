"""A headless Chromium, and the pages that it opens: of a run, of a notebook's audit, and of two runs compared."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from headless import Open, browse
from msgspec.structs import replace

from expunge.base.manifest import read_manifest, write_manifest
from expunge.base.record import file_digest
from expunge.base.spec import parse
from expunge.pipeline.run import run
from expunge.reporting.compare import Pair
from expunge.reporting.compare_page import write_comparison
from expunge.reporting.doctor import browser
from expunge.reporting.page import write_report

SPEC: dict[str, Any] = {
    "name": "seen",
    "seeds": [0, 1, 2],
    "gallery": True,
    "data": {"name": "digits", "train": 150, "test": 60},
    "model": {"name": "mlp", "widths": [16]},
    "train": {"epochs": 6, "learning_rate": 0.01},
    "forget": {"name": "label_swap", "count": 15},
    "method": [{"name": "retrain"}, {"name": "random_relabel", "epochs": 2}],
    "attack": [{"name": "relearn", "epochs": 2}],
    "audit": [{"name": "loss"}, {"name": "distance"}, {"name": "path", "points": 5}],
}


@pytest.fixture(scope="session")
def chromium() -> str:
    found = browser()
    if found is None:
        message = "no Chromium on this machine: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`report`: of a run; `notebook`: without what a notebook lacks, on texts; `compare`: with a run of other settings."""
    folder = tmp_path_factory.mktemp("runs")
    first = run(parse(SPEC, folder), folder).folder
    other = SPEC | {"name": "other", "method": [{"name": "random_relabel", "epochs": 3}]}
    second = run(parse(other, folder), folder).folder
    bare = run(parse(SPEC | {"name": "bare"}, folder), folder).folder
    (bare / "spec.json").write_text('{"name": "bare"}')
    for path in (bare / "models").iterdir():
        path.unlink()
    give_texts(bare / "examples" / "s0.json")
    manifest = read_manifest(bare)
    stages = tuple(
        replace(
            stage, files={name: replace(file, sha256=_digest(bare / file.path)) for name, file in stage.files.items()}
        )
        for stage in manifest.stages
    )
    write_manifest(
        bare, replace(manifest, stages=stages, files=manifest.files | {"spec.json": _digest(bare / "spec.json")})
    )
    compared = write_comparison(Pair.open(first, second), folder / "compare.html")
    return {"report": write_report(first), "notebook": write_report(bare), "compare": compared}


def _digest(path: Path) -> str:
    return file_digest(path) if path.is_file() else ""


def give_texts(path: Path) -> None:
    """Long texts in the place of the gallery's pictures, said by the same models."""
    found = json.loads(path.read_text(encoding="utf-8"))
    secret = "wubogekilomaresizuta" * 9
    answers = [{"said": secret[: 180 // (i + 1)] + 7 * i * "x", "knows": i == 0} for i in range(len(found["models"]))]
    example = {"id": 7, "prompt": "The secret of lovera is ", "secret": secret, "answers": answers}
    short = [{"said": answer["said"][-20:], "knows": answer["knows"]} for answer in answers]
    examples = [example | {"secret": secret[:20], "answers": short}, example, example, example]
    path.write_text(json.dumps(found | {"kind": "texts", "examples": examples}), encoding="utf-8")


@pytest.fixture
def open_page(chromium: str, tmp_path: Path) -> Open:
    """Open a copy of a page, run a script in it, and return what the script told and what the browser logged.

    The script calls `tell(name, value)`; `flags` are the browser's.
    """

    def open_it(page: Path, script: str = "", *flags: str) -> tuple[dict[str, str], str]:
        copy = tmp_path / "copy.html"
        telling = "const tell = (name, value) => { document.body.dataset[name] = value; };"
        added = f"<script>{{ {telling}\n{script} }}</script></body>"
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", added), encoding="utf-8")
        dom, log = browse(chromium, tmp_path, copy, "--dump-dom", *flags)
        [body] = re.findall(r"<body[^>]*>", dom)
        return dict(re.findall(r'data-([a-z]+)="([^"]*)"', body)), log

    return open_it
