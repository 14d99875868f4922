"""Reads a spec, a TOML file: checks it key by key and turns it into frozen data that names parts.

The pipeline constructs the parts later, so that reading a spec imports no torch.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from expunge.base.errors import SpecError, unknown
from expunge.base.extremes import DEEPEST, refuse_extremes
from expunge.base.part import Count, Natural
from expunge.base.registry import names
from expunge.base.user_code import add_search_path, names_code

RESERVED = ("original", "reference")
"""Model names in results; no method may have one as its label."""
AUDITED = "audited-"
"""What stands before the name of a file that would be reserved."""
GIVEN = "given"
"""The task of a spec without `[forget]`: the data say what to forget."""
CACHE = "cache"
"""Folder beside the runs that holds the outputs of stages."""
FOLDERS = (CACHE, "studies", "cases")
"""Folders beside the runs that hold something else; no run may have such a name."""
LARGEST = 2**18
"""Size in bytes above which a file is not read as a spec."""
MOST = 500
"""Seeds, and tables of one kind: a run has a stage for every combination of them."""
DOTS = 200
"""Dots in a line above which a file is not read as a spec."""
LONGEST = {"name": 100, "label": 60}
"""Letters; a file name may have 255 bytes, and it holds the labels of a method, an attack and an audit."""
DEVICES = "auto, cpu, cuda, cuda:<number> or mps"
Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
RETRAIN, NONE = "retrain", "none"
"""Where references come from, if the spec does not list the user's own models."""
VERDICTS = ("dormant", "incomplete", "damaged", "over-forgotten", "erased", "inconclusive")


@dataclass(frozen=True)
class Entry:
    """A table that names a part: its name, its label in results, and its settings."""

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    """Methods only: upper bound on the cost, in per-example gradients."""
    required: bool = False
    """Audits only: whether the verdict `erased` depends on it."""
    adapter: Mapping[str, Any] | None = None
    """Methods and attacks only: settings of the adapter that is trained instead of the weights (`core/adapter.py`)."""
    after: str | None = None
    """Methods only: label of the method whose model it starts from; by default it starts from the original."""
    at: tuple[str, ...] = ()
    """Blocks only: patterns of module paths; the block is inserted behind each module that matches."""


@dataclass(frozen=True)
class Gate:
    """A condition on the run: this method must get this verdict."""

    method: str
    verdict: str


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
    table = _toml(_content(path), str(path))
    for override in overrides:
        _override(table, override)
    spec = parse(table, path.resolve().parent)
    if spec.names_code:
        add_search_path(spec.folder)
    return spec


def _content(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"cannot read the spec ({reason})", where=str(path), remedy="check the path") from None
    if len(content) > LARGEST:
        raise SpecError("it is too large for a spec", where=str(path), allowed=f"at most {LARGEST} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"not valid TOML ({error})", where=str(path)) from None


def _toml(text: str, where: str) -> dict[str, Any]:
    # The time of tomllib grows with the square of the number of words in a dotted key.
    if any(line.count(".") > DOTS for line in text.splitlines()):
        raise SpecError("a line has too many dots", where=where, allowed=f"at most {DOTS}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML ({error})", where=where) from None
    except RecursionError:
        raise SpecError("it is nested too deeply", where=where, allowed=f"{DEEPEST} levels") from None
    except ValueError:
        # Python refuses to read numbers of thousands of digits.
        raise SpecError("a whole number is too long", where=where, allowed="whole numbers of 64 bits") from None


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
    plain = {key: _converted(table[key], key, *kind) for key, kind in _PLAIN.items() if key in table}
    if plain["name"].casefold() in FOLDERS:
        raise SpecError(f"the name {plain['name']!r} is reserved", where="name", remedy="choose another")
    model = _converted(table["model"], "model", dict[str, Any], "a table")
    weights, blocks = model.pop("weights", None), model.pop("block", [])
    train = plain.pop("train", {})
    adapter = train.pop("adapter", None)
    methods = _entries(table, "method", extra=("budget", "after", "adapter"))
    _check_chains(methods)
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
        adapter=None if adapter is None else _converted(adapter, "train.adapter", *_EXTRA["adapter"]),
        seeds=seeds,
        data=_entry(table["data"], "data"),
        objective=_entry(table["objective"], "objective") if "objective" in table else None,
        augmentation=_entries(table, "augmentation"),
        model=_entry(model, "model"),
        block=_blocks(blocks),
        weights=None if weights is None else str(folder / _converted(weights, "model.weights", str, "a path")),
        forget=_entry(table["forget"], "forget") if "forget" in table else Entry(GIVEN, GIVEN),
        references=references,
        method=methods,
        attack=_entries(table, "attack", extra=("adapter",)),
        audit=_entries(table, "audit", extra=("required",)),
        diagnostic=_entries(table, "diagnostic"),
        monitor=_entries(table, "monitor"),
        gate=_gates(table, methods),
        folder=folder,
    )


_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z"
_Name = Annotated[str, msgspec.Meta(pattern=_PATTERN, max_length=LONGEST["name"])]
_Label = Annotated[str, msgspec.Meta(pattern=_PATTERN, max_length=LONGEST["label"])]
_Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_LETTERS, _FLAG, _ONE = "letters, digits, '.', '_' and '-', at most {}", "true or false", "a whole number of at least 1"
_PATHS = 'paths of modules or patterns of them: "layers.*.relu"'
_PLAIN: dict[str, tuple[Any, str]] = {
    "name": (_Name, _LETTERS.format(LONGEST["name"])),
    "seeds": (tuple[Natural, ...], "whole numbers of at least 0, in a list"),
    "threads": (_Threads, "a whole number from 1 to 1024"),
    "device": (str, DEVICES),
    "precision": (Precision, " or ".join(PRECISIONS)),
    "checkpointing": (str, "auto, or a glob over paths of modules, such as 'layers.*'"),
    "gallery": (bool, _FLAG),
    "one_original": (bool, _FLAG),
    "train": (dict[str, Any], "a table"),
}
"""Keys that are no parts: their types, and what is allowed in words."""
_EXTRA: dict[str, tuple[Any, str]] = {
    "label": (_Label, _LETTERS.format(LONGEST["label"])),
    "budget": (Count, _ONE),
    "required": (bool, _FLAG),
    "after": (str, "the label of a method"),
    "adapter": (dict[str, Any], "a table with rank, alpha and targets; an empty one has the defaults"),
    "at": (str | tuple[str, ...], _PATHS),
}
"""The same of keys beside a part's settings."""
_REFERENCES = f'"{RETRAIN}", "{NONE}", or a list of paths of models that never saw the forget set'
_EXAMPLES = {
    "name": 'name = "my-run"',
    "data": '[data] with name = "fashion_mnist"',
    "model": '[model] with name = "cnn"',
}


def label_of(name: str) -> str:
    """A file's name as the label of a model: letters that a label cannot have become `-`, and a label is not too long.

    A model is never labelled as the original or the reference, because these are judged by nobody.
    """
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[: LONGEST["label"] - len(AUDITED)].rstrip("-._")
    return f"{AUDITED}{label}" if label in (*RESERVED, "") else label


def _entries(table: Mapping[str, Any], key: str, extra: tuple[str, ...] = ()) -> tuple[Entry, ...]:
    tables = _converted(table.get(key, []), key, list, f"a list of tables, written [[{key}]]")
    if len(tables) > MOST:
        raise SpecError(f"found {len(tables)} tables", where=key, allowed=f"at most {MOST}")
    entries = tuple(_entry(item, f"{key}[{i}]", extra=("label", *extra)) for i, item in enumerate(tables))
    labels = [entry.label for entry in entries]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise SpecError(
                f"{label!r} occurs twice", where=f"{key}[{i}]", remedy="give one of them a label of its own: label ="
            )
        if label in RESERVED:
            raise SpecError(f"the label {label!r} is reserved", where=f"{key}[{i}].label", remedy="choose another")
    return entries


def _entry(value: Any, where: str, extra: tuple[str, ...] = ()) -> Entry:
    table = _converted(value, where, dict[str, Any], "a table with a name")
    if "name" not in table:
        raise SpecError("'name' is missing", where=where, remedy="add name = ...")
    name = _converted(table.pop("name"), f"{where}.name", str, "a name")
    if "at" in extra and not table.get("at"):
        raise SpecError("'at' is missing", where=where, allowed=_PATHS, remedy="say behind which modules to put it")
    given = {key: _converted(table.pop(key), f"{where}.{key}", *_EXTRA[key]) for key in extra if key in table}
    if "after" in given:
        given["after"] = given["after"].replace(":", ".")
    if isinstance(given.get("at"), str):
        given["at"] = (given["at"],)
    label = given.pop("label", None)
    if label is None and names_code(name):
        # Without a label, the name is part of file names.
        label = _converted(name.replace(":", "."), f"{where}.name", *_EXTRA["label"])
    return Entry(name, label or name, table, **given)


def _references(value: Any, folder: Path) -> str | tuple[str, ...]:
    """Where references come from; paths of models count from the spec's folder."""
    if value in (RETRAIN, NONE):
        return str(value)
    if isinstance(value, str):
        value = [value]
    paths = _converted(value, "references", tuple[str, ...], _REFERENCES)
    if not paths:
        raise SpecError("found no model", where="references", allowed=_REFERENCES, remedy='write references = "none"')
    if len(paths) > MOST:
        raise SpecError(f"found {len(paths)}", where="references", allowed=f"at most {MOST}")
    return tuple(str(folder / path) for path in paths)


def _blocks(value: Any) -> tuple[Entry, ...]:
    tables = _converted(value, "model.block", list, "a list of tables, written [[model.block]]")
    return tuple(_entry(item, f"model.block[{i}]", extra=("at",)) for i, item in enumerate(tables))


def _check_chains(methods: tuple[Entry, ...]) -> None:
    after = {entry.label: entry.after for entry in methods}
    for i, before in enumerate(after.values()):
        if before is not None and before not in after:
            raise _no_method(before, methods, f"method[{i}].after")
    for i, label in enumerate(after):
        walked, before = [label], after[label]
        # The walk also ends in a circle that `label` is not part of; that circle is reported at one of its own methods.
        while before is not None and before not in walked:
            walked, before = [*walked, before], after[before]
        if before == label:
            circle = " after ".join([*walked, label])
            remedy = "leave out one 'after', so that a method starts from the original"
            raise SpecError(f"methods form a circle: {circle}", where=f"method[{i}].after", remedy=remedy)


def _no_method(label: str, methods: tuple[Entry, ...], where: str) -> SpecError:
    # If a method's own name is misspelt, report that name, not the place that repeats it as a label.
    for i, entry in enumerate(methods):
        if ":" not in entry.name and entry.name not in names("method"):
            return unknown("method", entry.name, names("method"), where=f"method[{i}].name")
    return unknown("method", label, [entry.label for entry in methods], where=where)


def _gates(table: Mapping[str, Any], methods: tuple[Entry, ...]) -> tuple[Gate, ...]:
    gates, labels = [], [entry.label for entry in methods]
    for i, item in enumerate(_converted(table.get("gate", []), "gate", list, "a list of tables, written [[gate]]")):
        where = f"gate[{i}]"
        for key in _converted(item, where, dict, "a table with method and verdict"):
            if key not in ("method", "verdict"):
                raise unknown("key", key, ("method", "verdict"), where=where)
        for key, options in (("method", labels), ("verdict", VERDICTS)):
            if key not in item:
                raise SpecError(f"{key!r} is missing", where=where, allowed=", ".join(options) or "none")
            if item[key] not in options and key == "method":
                raise _no_method(str(item[key]), methods, f"{where}.{key}")
            if item[key] not in options:
                raise unknown(key, str(item[key]), options, where=f"{where}.{key}")
        gates.append(Gate(item["method"], item["verdict"]))
    return tuple(gates)


def _converted(value: Any, where: str, kind: Any, allowed: str) -> Any:
    """The value as msgspec checks it for a type; of a list, the error names the element."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # msgspec writes the place of an element behind the reason: at `$[1]`.
        inside = re.search(r"`\$((?:\[\d+\])+)`$", str(error))
        for position in re.findall(r"\d+", inside[1]) if inside else ():
            value = value[int(position)]
        place = where + (inside[1] if inside else "")
        raise SpecError(f"found {value!r}", where=place, allowed=allowed) from None


def _override(table: dict[str, Any], assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise SpecError(f"found {assignment!r}", where="--set", allowed="a.b=value")
    try:
        value = _toml(f"value = {text}", "--set")["value"]
    except SpecError:
        value = text
    *steps, last = path.strip().split(".")
    place: Any = table
    for step in steps:
        place = _step(place, step, assignment)
    if not isinstance(place, dict):
        raise SpecError(f"{'.'.join(steps)!r} is not a table", where=f"--set {assignment}")
    place[last] = value


def _step(place: Any, step: str, assignment: str) -> Any:
    where = f"--set {assignment}"
    if isinstance(place, dict):
        return place.setdefault(step, {})
    if not isinstance(place, list) or not all(isinstance(item, dict) for item in place):
        raise SpecError(f"there is no {step!r} in {place!r}", where=where, allowed="the path of a value in a table")
    # Labels first, then names, then positions; an entry without a label has its name as label.
    labels = [str(item.get("label", item.get("name"))) for item in place]
    for options in (labels, [str(item.get("name")) for item in place], [str(i) for i in range(len(place))]):
        if step in options:
            return place[options.index(step)]
    raise unknown("entry", step, labels, where=where)
