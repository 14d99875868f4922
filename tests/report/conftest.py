"""Runs whose numbers are chosen, as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _written import KNOWN, Json, Writer


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run: `known` as `KNOWN`, with other seeds, attacks, or facts of the manifest where they are given."""

    def make(
        known: Json = KNOWN, seeds: list[int] | None = None, attacks: list[str] | None = None, **facts: Any
    ) -> Path:
        chosen = [0, 1, 2] if seeds is None else seeds
        return Writer(tmp_path / "sample", known, chosen, ["relearn"] if attacks is None else attacks, **facts).finish()

    return make


@pytest.fixture
def run_folder(make_run: Callable[..., Path]) -> Path:
    """The sample run: `clean` is erased, `hidden` is dormant."""
    return make_run()
