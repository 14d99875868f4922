"""A stage as data: one computation of a run, its inputs by name, and the content address of its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Inputs = Mapping[str, str | tuple[str, ...]]
"""Name -> key of the stage that makes the input, or keys of several stages."""

WEIGHTS, SCORES = "weights.safetensors", "scores.safetensors"
CURVE, STATISTICS = "curve.safetensors", "measured.safetensors"
ESTIMATES, EXAMPLES, MONITORS = "estimates.json", "examples.json", "monitors.json"


@dataclass(frozen=True)
class Stage:
    """One computation of a run."""

    kind: str
    """Name of a file in `pipeline/stages`, or of an entry point of the group `expunge.stages`."""
    model: str
    """`original`, `reference` or a method's label; empty if the stage is about no model, or about several."""
    seed: int | None
    """The run's seed to which the stage belongs; `None` if it belongs to all."""
    attack: str | None
    """Label of the attack that the stage runs, or that changed its model."""
    part: str
    """Label of the method, attack, audit or diagnostic that the stage runs; for a shadow its number."""
    key: str
    """Content address of the output."""
    inputs: Inputs = field(default_factory=dict, repr=False, hash=False)
    """Keys of the stages that must run first, by the name of the input."""
    start: str | None = None
    """For a method that runs after another method: the label of that method."""
    part_kind: str | None = None
    """For a `measure` stage: the kind of the part whose statistics it computes; `None` for the task."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of all inputs, each once."""
        keys = (keys if isinstance(keys, tuple) else (keys,) for keys in self.inputs.values())
        return tuple(dict.fromkeys(key for group in keys for key in group))

    def input(self, name: str) -> str:
        """The key of an input that comes from one stage."""
        key = self.inputs[name]
        assert isinstance(key, str), f"{name} of {self.name} is several stages"
        return key

    def several(self, name: str) -> tuple[str, ...]:
        """The keys of an input that comes from several stages; empty if the stage has no such input."""
        keys = self.inputs.get(name, ())
        return keys if isinstance(keys, tuple) else (keys,)

    @property
    def name(self) -> str:
        """A readable name of the stage."""
        words = [self.kind, self.model if self.kind != self.model else "", self.part if self.part != self.model else ""]
        first = self.attack if self.kind in ("audit", "shadow") else self.start
        after = f"after {first}" if first else ""
        seed = "" if self.seed is None else f"seed {self.seed}: "
        return seed + " ".join(word for word in [*words, after] if word)
