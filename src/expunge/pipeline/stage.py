"""A stage as data: one computation of a run, its inputs by name, and a content address of all that enters it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Inputs = Mapping[str, str | tuple[str, ...]]
"""Name -> key of the stage that the input comes from, or keys of several."""

WEIGHTS, SCORES = "weights.safetensors", "scores.safetensors"
CURVE, STATISTICS = "curve.safetensors", "measured.safetensors"
ESTIMATES, EXAMPLES, MONITORS = "estimates.json", "examples.json", "monitors.json"


@dataclass(frozen=True)
class Stage:
    """One computation of a run."""

    kind: str
    """Name of a file in `pipeline/stages`, or of an entry point of the group `expunge.stages`."""
    model: str
    """`original`, `reference` or a method's label; empty where it is about no model, or about several."""
    seed: int | None
    """The run's seed that it belongs to."""
    attack: str | None
    """Label of the attack that it is, or comes after; of a shadow, that it was attacked with."""
    part: str
    """Label of the method, attack, audit or diagnostic that it runs; a shadow's number."""
    key: str
    """Content address of the output."""
    inputs: Inputs = field(default_factory=dict, repr=False, hash=False)
    """Keys of the stages that must come first, by what they are to this one."""
    start: str | None = None
    """Label of the method whose model a method starts from."""
    part_kind: str | None = None
    """Of a `measure` stage: the kind of the part whose statistics it computes; none for the task's."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of all inputs, each once."""
        keys = (keys if isinstance(keys, tuple) else (keys,) for keys in self.inputs.values())
        return tuple(dict.fromkeys(key for several in keys for key in several))

    def input(self, name: str) -> str:
        """The key of an input that is one stage."""
        key = self.inputs[name]
        assert isinstance(key, str), f"{name} of {self.name} is several stages"
        return key

    def several(self, name: str) -> tuple[str, ...]:
        """The keys of an input that is several stages; empty where it has none."""
        keys = self.inputs.get(name, ())
        return keys if isinstance(keys, tuple) else (keys,)

    @property
    def name(self) -> str:
        """What it is, for people."""
        words = [self.kind, self.model if self.kind != self.model else "", self.part if self.part != self.model else ""]
        first = self.attack if self.kind in ("audit", "shadow") else self.start
        after = f"after {first}" if first else ""
        seed = "" if self.seed is None else f"seed {self.seed}: "
        return seed + " ".join(word for word in [*words, after] if word)
