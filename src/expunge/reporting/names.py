"""Names of parts for shell completion, `show` and `cite`. The registry finds them without importing the parts."""

from __future__ import annotations

from typing import Any

from expunge.base import registry
from expunge.base.errors import unknown

PRESETS = {
    "quick": "about 20 seconds; one seed, which decides nothing: it shows that the study runs",
    "cpu": "up to 30 minutes on two idle cores; decides the primary claims",
    "long": "up to 6 hours on two idle cores; also measures the claims that need more",
    "paper": "the scale of the paper",
}
"""A study's scales in order of cost, and what each of them takes and gives."""


def kinds_of(name: str) -> list[str]:
    """The kinds under which a name is registered.

    Raises:
        SpecError: The name is registered under none.
    """
    if kinds := registry.kinds_of(name):
        return kinds
    raise unknown("name", name, _all_names(), where="")


def kind_of(word: str) -> str:
    """The kind that a word names, such as `method`, or `methods`, the name of its folder.

    Raises:
        SpecError: The word names no kind.
    """
    singular = {folder: kind for kind, folder in registry.FOLDERS.items()}
    if word in registry.FOLDERS or word in singular:
        return singular.get(word, word)
    raise unknown("kind", word, singular, where="list")


def complete_name(context: Any, parameter: Any, begun: str) -> list[str]:
    """Names of parts of any kind."""
    return [name for name in _all_names() if name.startswith(begun)]


def complete_kind(context: Any, parameter: Any, begun: str) -> list[str]:
    """Kinds, by their folders."""
    return [folder for folder in registry.FOLDERS.values() if folder.startswith(begun)]


def complete_study(context: Any, parameter: Any, begun: str) -> list[str]:
    """Names of studies."""
    return [name for name in registry.names("study") if name.startswith(begun)]


def complete_preset(context: Any, parameter: Any, begun: str) -> list[str]:
    """Scales of a study."""
    return [name for name in PRESETS if name.startswith(begun)]


def _all_names() -> list[str]:
    return sorted({name for kind in registry.FOLDERS for name in registry.names(kind)})
