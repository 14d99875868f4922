"""Exact copies among examples: rows of inputs with the same bytes form one group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.core.problem import Problem
from expunge.reporting.progress import Progress

CHUNK = 1024
"""Rows that are read at a time."""


def row_digests(tensor: Tensor) -> list[bytes]:
    """A digest of each row of a tensor `[n, ...]`; rows are equal if their bytes are."""
    digests: list[bytes] = []
    for rows in tensor.detach().split(CHUNK):
        plain = rows.cpu().flatten(1) if rows.ndim > 1 else rows.cpu().unsqueeze(1)
        # Adding 0 turns -0 into 0, which equals it.
        plain = (plain + 0).contiguous() if plain.is_floating_point() else plain.contiguous()
        content = plain.view(torch.uint8).numpy() if plain.shape[1] else plain.numpy()
        digests += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in content]
    return digests


def groups_of_copies(digests: Sequence[bytes]) -> Tensor | None:
    """Group of each example, `[n]`: the id of its first copy; `None` if no example has a copy."""
    first: dict[bytes, int] = {}
    groups = [first.setdefault(digest, i) for i, digest in enumerate(digests)]
    return torch.tensor(groups) if len(first) < len(groups) else None


def copies_in(problem: Problem) -> list[str]:
    """What the user should know about copies: within the forget set, and of one set in another."""
    if problem.data.groups is None:
        return []
    sets = {name: problem.data.group_of(getattr(problem, name)) for name in MEANING if len(getattr(problem, name))}
    forget, notes = problem.data.group_of(problem.forget), []
    distinct = len(forget.unique())
    if distinct < len(forget):
        notes.append(f"forget: {len(forget)} examples are copies of {distinct}, which count as {distinct} in intervals")
    for name, groups in sets.items():
        count = int(torch.isin(forget, groups).sum())
        if count:
            notes.append(f"forget: {count} of {len(forget)} examples have a copy in {name}: {MEANING[name]}")
    if "test" in sets and (count := int(torch.isin(sets["test"], sets["retain"]).sum())):
        notes.append(f"test: {count} of {len(sets['test'])} examples have a copy in retain, so they are not unseen")
    return notes


MEANING = {
    "retain": "references train on it, so it cannot be forgotten; take it out of retain",
    "test": "utility would be measured on what must be forgotten; take it out of test",
    "holdout": "it is not unseen; take it out of holdout",
}
"""Set -> what a copy of a forget example in it means."""


def say_copies(problem: Problem) -> None:
    """Write what `copies_in` finds to stderr."""
    for note in copies_in(problem):
        Progress().say(note)
