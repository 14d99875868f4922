"""Exact copies among examples: rows of inputs with the same bytes form one group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.core.data import Data
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
    """What the user should know about copies and groups: within the forget set, and of one set in another."""
    if problem.data.groups is None:
        return []
    sets = {name: getattr(problem, name) for name in ("forget", *MEANING)}
    copies = _copies(problem.data, torch.cat(list(sets.values())))
    kinds = {name: copies[ids] for name, ids in sets.items() if len(ids)}
    forget, notes, count = kinds["forget"], [], len(problem.forget)
    distinct, groups = len(forget.unique()), len(problem.data.group_of(problem.forget).unique())
    if distinct < count:
        notes.append(f"forget: {count} examples are copies of {distinct}, which count as {distinct} in intervals")
    if groups < distinct:
        notes.append(f"forget: {count} examples belong to {groups} groups, which count as {groups} in intervals")
    for name, meaning in MEANING.items():
        both = int(torch.isin(forget, kinds[name]).sum()) if name in kinds else 0
        if both:
            notes.append(f"forget: {both} of {count} examples have a copy in {name}: {meaning}")
    if "test" in kinds and (both := int(torch.isin(kinds["test"], kinds["retain"]).sum())):
        notes.append(f"test: {both} of {len(kinds['test'])} examples have a copy in retain, so they are not unseen")
    return notes


def _copies(data: Data, ids: Tensor) -> Tensor:
    """For each example `[n]` the number of its content, -1 if it is not among the ids.

    Groups may also hold relatives, such as the texts about one person. Where inputs are not in memory, groups are
    taken for copies.
    """
    if not isinstance(data.inputs, Tensor):
        return data.group_of(torch.arange(len(data)))
    numbers: dict[bytes, int] = {}
    copies = torch.full((len(data),), -1)
    copies[ids] = torch.tensor([numbers.setdefault(row, len(numbers)) for row in row_digests(data.inputs[ids])])
    return copies


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
