"""Writes a resolved spec as TOML, so that it can be saved and run again; Python's own `tomllib` only reads TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml(table: Mapping[str, Any]) -> str:
    """Plain data as TOML: first values, then tables and lists of tables. Null values are left out as defaults."""
    scalars = [(k, v) for k, v in table.items() if v is not None and not _is_table(v) and not _is_tables(v)]
    blocks = ["\n".join(f"{_key(k)} = {spelled_value(v)}" for k, v in scalars if v != [])]
    for name, value in table.items():
        if _is_table(value):
            blocks.append(_block(f"[{_key(name)}]", value))
        elif _is_tables(value):
            blocks += [_block(f"[[{_key(name)}]]", item) for item in value]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _block(heading: str, table: Mapping[str, Any]) -> str:
    return "\n".join([heading, *(f"{_key(k)} = {spelled_value(v)}" for k, v in table.items() if v is not None)])


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def spelled_value(value: Any) -> str:
    """One value as TOML writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {spelled_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spelled_value(item) for item in value) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
