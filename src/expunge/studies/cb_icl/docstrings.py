"""Multiple choice from docstrings of Python's own library: which of six packages is this sentence from?"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PACKAGES = ("asyncio", "email", "logging", "unittest", "multiprocessing", "xml")


@cache
def docstrings() -> tuple[list[str], Tensor]:
    """First paragraphs of docstrings, without the package's name, and the package of each, `[n]`."""
    texts, labels = [], []
    for label, package in enumerate(PACKAGES):
        own = sorted(set(_of_package(package)))
        texts += own
        labels += [label] * len(own)
    return texts, torch.tensor(labels)


def _of_package(package: str) -> Iterator[str]:
    folder = Path(sysconfig.get_path("stdlib")) / package
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
                if len(text.split()) >= 4:
                    yield text.replace(package, "it")
