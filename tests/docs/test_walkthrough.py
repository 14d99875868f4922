"""Every file and every name in the walk through the code exists: a name is defined in the file named last before it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from expunge.base.spec import read
from expunge.pipeline.plan import Plan

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
DEFINES = re.compile(r"(?:[A-Za-z_]\w*\.)?[A-Za-z_]\w*\(\)|_*[A-Z]\w*(?:\.[A-Za-z_]\w*)?")
"""A function, a class, or a member of a class."""
FREE = {"ExpungeError", "RandomRelabel", "Spec", "Plan", "Problem", "Task", "Unlearned"}
"""Classes that are mentioned beside files that only use them; they must be defined somewhere in the package."""


def mentions(text: str) -> list[tuple[str, str]]:
    """(file, name) for each name; (file, "") for each file."""
    prose = re.sub(r"^```.*?^```$", "", text.partition("\n## ")[2], flags=re.MULTILINE | re.DOTALL)
    pairs, file = [], ""
    for span in re.findall(r"`([^`]+)`", prose):
        if span.endswith(".py"):
            file = span
            pairs.append((file, ""))
        elif DEFINES.fullmatch(span):
            pairs.append((file, span.removesuffix("()")))
    return pairs


@cache
def defined(file: str) -> frozenset[str]:
    """Functions, classes and their members, as `name` and `Class.name`."""
    names = set[str]()
    for node in ast.parse((ROOT / "src/expunge" / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef):
                names.add(f"{node.name}.{member.name}")
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                names.add(f"{node.name}.{member.target.id}")
    return frozenset(names)


def wrong(text: str) -> list[tuple[str, str]]:
    """Mentions of what does not exist."""
    files = [path.relative_to(ROOT / "src/expunge").as_posix() for path in (ROOT / "src/expunge").rglob("*.py")]
    everywhere = frozenset[str]().union(*map(defined, files))
    return [
        (file, name)
        for file, name in mentions(text)
        if file not in files or (name and name not in (everywhere if name in FREE else defined(file)))
    ]


def test_every_file_and_name_exists() -> None:
    assert len(mentions(PAGE)) > 150
    assert wrong(PAGE) == []


@pytest.mark.parametrize("mistake", ["`pipeline/no_such.py`", "`cli/runs.py`: `walk()`", "`core/job.py`: `Job.colour`"])
def test_a_wrong_mention_is_found(mistake: str) -> None:
    assert wrong(f"\n## One\n{mistake}")


def test_the_demo_has_as_many_stages_as_the_page_says() -> None:
    plan = Plan(read(ROOT / "examples/demo.toml"))
    assert f"The run has {len(plan.stages)} stages." in PAGE
