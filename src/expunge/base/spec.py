"""Reads a spec, a TOML file: checks it key by key and turns it into frozen data that names parts.

The pipeline constructs the parts later, so that reading a spec imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from expunge.base.errors import SpecError, unknown
from expunge.base.extremes import refuse_extremes
from expunge.base.part import Natural
from expunge.base.spec_tables import (
    BESIDE,
    FLAG,
    LETTERS,
    LONGEST,
    MOST,
    Entry,
    Gate,
    Name,
    blocks_of,
    check_chains,
    converted,
    entries_of,
    entry_of,
    gates_of,
)
from expunge.base.spec_text import content_of, override, toml_of
from expunge.base.user_code import add_search_path, names_code

GIVEN = "given"
"""The task of a spec without `[forget]`: the data say what to forget."""
CACHE = "cache"
"""Folder beside the runs that holds the outputs of stages."""
FOLDERS = (CACHE, "studies", "cases")
"""Folders beside the runs that hold something else; no run may have such a name."""
DEVICES = "auto, cpu, cuda, cuda:<number> or mps"
Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
RETRAIN, NONE = "retrain", "none"
"""Where references come from, if the spec does not list the user's own models."""


@dataclass(frozen=True)
class Spec:
    """What to run, as plain data."""

    name: str
    seeds: tuple[int, ...]
    data: Entry
    model: Entry
    forget: Entry
    method: tuple[Entry, ...]
    train: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    """Settings of the adapter that originals and references train (`[train.adapter]`); by default none."""
    objective: Entry | None = None
    """The objective that models are trained and judged by; by default inferred from the data."""
    augmentation: tuple[Entry, ...] = ()
    block: tuple[Entry, ...] = ()
    """Blocks that are inserted into the model (`[[model.block]]`), in this order."""
    weights: str | None = None
    """Path of the user's own weights (`model.weights`); the original is then loaded instead of trained."""
    one_original: bool = False
    """Whether one original is trained, with the first seed, and verdicts are about it; seeds are then references."""
    references: str | tuple[str, ...] = RETRAIN
    """Where references come from: `retrain`, `none`, or paths of the user's own models, one for each seed."""
    attack: tuple[Entry, ...] = ()
    audit: tuple[Entry, ...] = ()
    diagnostic: tuple[Entry, ...] = ()
    monitor: tuple[Entry, ...] = ()
    """Monitors: measurements while originals and references train."""
    gate: tuple[Gate, ...] = ()
    threads: int = 1
    device: str = "auto"
    """Device that models run on: `auto` (CUDA, then MPS, then the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: str = "float32"
    """Number format of forward passes: `float32` or `bf16`; weights and losses stay in float32."""
    checkpointing: str | None = None
    """Modules whose activations are recomputed in the backward pass: a glob over module paths, or `auto`."""
    gallery: bool = False
    """Whether forget examples are copied into the record and shown in the report; off, as they may be personal data."""
    folder: Path = Path()
    """Folder of the spec file; relative paths in the spec start here."""

    def chain(self, label: str) -> list[Entry]:
        """The chain of methods from the original to this method's model; this method is the last."""
        entry = next(entry for entry in self.method if entry.label == label)
        return [*(self.chain(entry.after) if entry.after else []), entry]

    @property
    def names_code(self) -> bool:
        """Whether a part is `module:function`. Only then modules are looked up in the spec's folder."""
        parts = (self.data, self.model, self.forget, *([self.objective] if self.objective else []), *self.method)
        parts += (*self.augmentation, *self.block, *self.attack, *self.audit, *self.diagnostic, *self.monitor)
        return any(map(names_code, (self.train.get("name"), *(entry.name for entry in parts))))

    @property
    def chained(self) -> list[Entry]:
        """The methods in the spec's order, but each after the method that it starts from."""
        return sorted(self.method, key=lambda entry: len(self.chain(entry.label)))


KEYS = (
    "name", "seeds", "one_original", "references", "threads", "device", "precision", "checkpointing", "gallery",
    "data", "objective", "augmentation", "model", "train", "forget",
    "method", "attack", "audit", "diagnostic", "monitor", "gate",
)  # fmt: skip


def read(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec file.

    Args:
        path: The TOML file.
        overrides: `a.b=c` assignments; an element of a list of tables is addressed by label, name or position.

    Returns:
        The spec.

    Raises:
        SpecError: The file cannot be read, is not TOML, or holds a key or value that is not allowed.
    """
    table = toml_of(content_of(path), str(path))
    for assignment in overrides:
        override(table, assignment)
    spec = parse(table, path.resolve().parent)
    if spec.names_code:
        add_search_path(spec.folder)
    return spec


def parse(table: Mapping[str, Any], folder: Path) -> Spec:
    """The spec that a table describes.

    Args:
        table: The spec as plain data, as read from TOML.
        folder: Where relative paths start.

    Returns:
        The spec.

    Raises:
        SpecError: A key is unknown or missing, a value has the wrong type, or a label occurs twice.
    """
    for key in table:
        if key not in KEYS:
            raise unknown("key", key, KEYS, where="spec")
    refuse_extremes(table, "")
    for key in ("name", "data", "model"):
        if key not in table:
            raise SpecError(f"{key!r} is missing", where="spec", remedy=f"add {_EXAMPLES[key]}")
    plain = {key: converted(table[key], key, *kind) for key, kind in _PLAIN.items() if key in table}
    if plain["name"].casefold() in FOLDERS:
        raise SpecError(f"the name {plain['name']!r} is reserved", where="name", remedy="choose another")
    model = converted(table["model"], "model", dict[str, Any], "a table")
    weights, blocks = model.pop("weights", None), model.pop("block", [])
    train = plain.pop("train", {})
    adapter = train.pop("adapter", None)
    methods = entries_of(table, "method", extra=("budget", "after", "adapter"))
    check_chains(methods)
    references = _references(table.get("references", RETRAIN), folder)
    alone = 1 if references == NONE else None if references == RETRAIN else len(references)
    seeds = plain.pop("seeds", (0, 1, 2) if alone is None else tuple(range(alone)))
    if not seeds or len(set(seeds)) != len(seeds):
        raise SpecError(f"found {list(seeds)}", where="seeds", allowed="at least one whole number, each once")
    if len(seeds) > MOST:
        raise SpecError(f"found {len(seeds)}", where="seeds", allowed=f"at most {MOST}")
    if alone is not None and len(seeds) != alone:
        finding = f"found {len(seeds)} seeds, and there {'is no reference' if references == NONE else f'are {alone}'}"
        raise SpecError(finding, where="seeds", allowed=f"{alone}", remedy="leave seeds out")
    return Spec(
        **plain,
        train=train,
        adapter=None if adapter is None else converted(adapter, "train.adapter", *BESIDE["adapter"]),
        seeds=seeds,
        data=entry_of(table["data"], "data"),
        objective=entry_of(table["objective"], "objective") if "objective" in table else None,
        augmentation=entries_of(table, "augmentation"),
        model=entry_of(model, "model"),
        block=blocks_of(blocks),
        weights=None if weights is None else str(folder / converted(weights, "model.weights", str, "a path")),
        forget=entry_of(table["forget"], "forget") if "forget" in table else Entry(GIVEN, GIVEN),
        references=references,
        method=methods,
        attack=entries_of(table, "attack", extra=("adapter",)),
        audit=entries_of(table, "audit", extra=("required",)),
        diagnostic=entries_of(table, "diagnostic"),
        monitor=entries_of(table, "monitor"),
        gate=gates_of(table, methods),
        folder=folder,
    )


_Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_PLAIN: dict[str, tuple[Any, str]] = {
    "name": (Name, LETTERS.format(LONGEST["name"])),
    "seeds": (tuple[Natural, ...], "whole numbers of at least 0, in a list"),
    "threads": (_Threads, "a whole number from 1 to 1024"),
    "device": (str, DEVICES),
    "precision": (Precision, " or ".join(PRECISIONS)),
    "checkpointing": (str, "auto, or a glob over paths of modules, such as 'layers.*'"),
    "gallery": (bool, FLAG),
    "one_original": (bool, FLAG),
    "train": (dict[str, Any], "a table"),
}
"""Keys that are no parts: their types, and what is allowed in words."""
_REFERENCES = f'"{RETRAIN}", "{NONE}", or a list of paths of models that never saw the forget set'
_EXAMPLES = {
    "name": 'name = "my-run"',
    "data": '[data] with name = "fashion_mnist"',
    "model": '[model] with name = "cnn"',
}


def _references(value: Any, folder: Path) -> str | tuple[str, ...]:
    """Where references come from; paths of models count from the spec's folder."""
    if value in (RETRAIN, NONE):
        return str(value)
    if isinstance(value, str):
        value = [value]
    paths = converted(value, "references", tuple[str, ...], _REFERENCES)
    if not paths:
        raise SpecError("found no model", where="references", allowed=_REFERENCES, remedy='write references = "none"')
    if len(paths) > MOST:
        raise SpecError(f"found {len(paths)}", where="references", allowed=f"at most {MOST}")
    return tuple(str(folder / path) for path in paths)
