"""Deterministic mutations of bytes and of plain data: the same seed gives the same inputs."""

from __future__ import annotations

import copy
import random
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30), 0.0, -0.0, 1e-320, 1e308, float("inf"),
    float("nan"), "", " ", "a" * 240, "a" * 5000, "a\0b", "\x1b[2J", "\n", "../up", "/", "ä\u202eb", "auto", "cuda:99",
    "os:getcwd", "sys:exit", "json:__name__", "nowhere:net", ":", "a:", ":b", "functools:partial", "torch:load",
    [], [[]], [0, 0], [None], [""], list(range(50)), {}, {"name": 1}, {"name": "mlp"}, {"": {}}, [{}],
]  # fmt: skip
KEYS = ["name", "label", "seeds", "path", "widths", "epochs", "count", "budget", "after", "required", "", "a.b", "ä"]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four changes: bits, bytes, missing, repeated or inserted pieces, another length."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 8, 32])
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at:at] = rng.choice([b"\0", b"\xff" * 8, b"9" * 40, b"[" * 40, b'"', b"\n", b"{}"])
            case 5:
                del data[at:]
    return bytes(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain data, the outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


def mutated(table: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy of the table after one to three changes of a value, a key or a list."""
    changed: dict[str, Any] = copy.deepcopy(table)
    for _ in range(rng.randint(1, 3)):
        *outer, last = rng.choice(places(changed)[1:] or [("name",)])
        place: Any = changed
        for key in outer:
            place = place[key]
        match rng.randrange(4):
            case 0 | 1:
                place[last] = copy.deepcopy(rng.choice(HOSTILE))
            case 2:
                del place[last]
            case 3 if isinstance(place, dict):
                place[rng.choice(KEYS)] = copy.deepcopy(rng.choice(HOSTILE))
            case 3:
                place.append(copy.deepcopy(place[last]))
    return changed


def toml(value: Any) -> str:
    """Plain data as one TOML value; whatever TOML cannot write becomes a text that it cannot read."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in text)
    return '"' + "".join(escaped) + '"'


def spec(table: dict[str, Any]) -> str:
    """A table as the text of a spec."""
    return "".join(f"{quoted(key)} = {toml(value)}\n" for key, value in table.items())
