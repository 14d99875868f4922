"""Read claims from `claims.toml`, where a study declares them before it measures anything.

[[claim]]
id = "heads"
primary = true              # one to three of a study
statement = "Heads are more frequent."
source = "ours"
unit = "share"
above = 0.5                 # the rule: `above`, `below`, `within = [low, high]`, or `ordered` with its margin
reason = "Half is no preference."
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from expunge.base.errors import SpecError, unknown
from expunge.evidence.claim import Claim, Rule, above, below, ordered, within

FILE = "claims.toml"
RULES = ("above", "below", "within", "ordered")


class _Entry(msgspec.Struct, kw_only=True):
    """One `[[claim]]` table: the fields of a `Claim`, with the rule spread over two keys."""

    id: str
    statement: str
    source: str
    unit: str
    reason: str
    """The reason for the bound."""
    above: float | None = None
    below: float | None = None
    within: tuple[float, float] | None = None
    ordered: float | None = None
    primary: bool = False
    paper_value: str | None = None
    exact: bool = False

    def rule(self) -> Rule:
        """The rule; `read_claims` has checked that there is one."""
        if self.above is not None:
            return above(self.above, self.reason)
        if self.below is not None:
            return below(self.below, self.reason)
        if self.within is not None:
            return within(*self.within, self.reason)
        return ordered(self.reason, self.ordered or 0.0)


def read_claims(beside: str | Path) -> tuple[Claim, ...]:
    """The claims of a study, in the order of its file.

    Args:
        beside: A file in the study's folder; `__file__` in its `study.py`.

    Returns:
        One claim per `[[claim]]` table.

    Raises:
        SpecError: The file is missing or is no TOML; a key is unknown or missing, or has the wrong type; a claim has no
            rule or two; an id occurs twice.
    """
    path = Path(beside).with_name(FILE)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"cannot read the claims ({error})", where=str(path), allowed="a file in TOML") from None
    for key in table:
        if key != "claim":
            raise unknown("key", key, ["claim"], where=str(path))
    rows = table.get("claim")
    if not isinstance(rows, list) or not rows:
        raise SpecError("there is no claim", where=str(path), remedy="add a [[claim]] table")
    claims = tuple(_claim(row, f"{path}, claim[{place}]") for place, row in enumerate(rows))
    name, count = Counter(claim.id for claim in claims).most_common(1)[0]
    if count > 1:
        raise SpecError(f"id {name!r} occurs {count} times", where=str(path), allowed="each id once")
    return claims


def _claim(row: Any, where: str) -> Claim:
    if not isinstance(row, dict):
        raise SpecError(f"found {row!r}", where=where, allowed="a table")
    for key in row:
        if key not in _Entry.__struct_fields__:
            raise unknown("key", key, _Entry.__struct_fields__, where=where)
    rules = [key for key in RULES if key in row]
    if len(rules) != 1:
        raise SpecError(f"found {len(rules)} rules {rules}", where=where, allowed=f"one of {', '.join(RULES)}")
    try:
        entry = msgspec.convert(row, _Entry)
    except msgspec.ValidationError as error:
        raise SpecError(f"does not fit: {error}", where=where) from None
    return Claim(
        id=entry.id,
        statement=entry.statement,
        source=entry.source,
        rule=entry.rule(),
        unit=entry.unit,
        primary=entry.primary,
        paper_value=entry.paper_value,
        exact=entry.exact,
    )
