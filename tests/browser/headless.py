"""Start a headless Chromium on a file and collect what it prints and logs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

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
Open = Callable[..., tuple[dict[str, str], str]]
"""(page, script, *flags) -> what the script told, and the log."""


def browse(chromium: str, profile: Path, page: Path, *flags: str) -> tuple[str, str]:
    """What the browser prints and logs."""
    command = [chromium, *FLAGS, *flags, f"--user-data-dir={profile / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]
