"""The documentation names everything that there is, and its Python blocks run as they are written."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from expunge.base import registry
from expunge.cli import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("_reference", DOCS / "_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


GENERATED = _generated()
WRITTEN = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
REGISTERED = [(kind, name) for kind in registry.FOLDERS for name in registry.names(kind)]
assert isinstance(cli, click.Group)
COMMANDS = cli.commands
RUNNABLE = [page for page, text in WRITTEN.items() if BLOCK.search(text)]


@pytest.mark.parametrize(("kind", "name"), REGISTERED, ids=[f"{kind}-{name}" for kind, name in REGISTERED])
def test_every_part_is_in_the_reference(kind: str, name: str) -> None:
    page = GENERATED[f"reference/{registry.FOLDERS[kind]}.md"]
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    settings = [field.name for field in dataclasses.fields(registry.load(kind, name))]
    assert len(section) > 30
    assert all(f"| `{setting}` |" in section for setting in settings)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_in_the_reference(name: str) -> None:
    section = GENERATED["reference/cli.md"].partition(f"\n## expunge {name}\n")[2].partition("\n## ")[0]
    options = [option for param in COMMANDS[name].params if isinstance(param, click.Option) for option in param.opts]
    assert section
    assert all(option in section for option in options)


@pytest.mark.parametrize("path", sorted((ROOT / "src/expunge/numerics").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_numerical_function_is_in_the_reference(path: Path) -> None:
    section = GENERATED["reference/numerics.md"].partition(f"\n## {path.stem}\n")[2].partition("\n## ")[0]
    defined = re.findall(r"^(?:def|class) ([A-Za-z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert defined
    assert all(f"\n### {name}\n" in section for name in defined)


def test_every_page_is_in_the_navigation() -> None:
    assert [page for page in [*WRITTEN, *GENERATED] if page not in NAV] == []


@pytest.mark.parametrize("page", RUNNABLE)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace; pages that show an example file have no block of their own for it."""
    monkeypatch.chdir(tmp_path)
    script = "\n\n".join(BLOCK.findall(WRITTEN[page]))
    # A file of its own: a part's source is read where its settings are described.
    path = tmp_path / f"{Path(page).stem.replace('-', '_')}.py"
    path.write_text(script, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)


def test_shown_files_exist() -> None:
    shown = re.findall(r'--8<-- "(.+)"', "\n".join(WRITTEN.values()))
    assert shown
    assert all((ROOT / path).is_file() for path in shown)


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "reference" / "methods.html").is_file()
    page = (tmp_path / "choosing.html").read_text(encoding="utf-8")
    assert all(name in page for name in registry.names("method"))
