"""Every method, attack, audit and diagnostic runs on a device that is not the CPU, and gives the numbers of the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _fake import FAKE, Backend
from torch import Tensor, nn

import expunge
from expunge.base import registry
from expunge.base.spec import parse
from expunge.core import checkpoint
from expunge.core.case import Case, Shadows, train_model
from expunge.core.data import Batch
from expunge.core.device import placed
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.modules import first_parameter
from expunge.core.problem import Problem
from expunge.core.recompute import micro_batches
from expunge.methods.rem import REM
from expunge.pipeline import parts
from expunge.pipeline.run import run
from expunge.testing._rules import accepted
from expunge.testing._settings import (
    MEMORY,
    PLAIN,
    REGULARISED,
    TOKENS,
    Setting,
    every_setting,
    scenes_setting,
    whole_class,
)
from expunge.train.monitors.sharpness import SharpnessMonitor
from expunge.train.training import TrainedRecipe
from helpers import tiny

SMALL: dict[str, dict[str, Any]] = {
    "tar": {"outer_steps": 3, "inner_steps": 2, "batch_size": 8, "forget_batch_size": 4},
    "memorization": {"nets": 2},
    "sharpness": {"epochs": 30.0},
    "object_attribution": {"steps": 2, "width": 2, "examples": 4},
}
OWN_FILE = {"checkpoint"}
"""Reads weights from a file; `tests/pipeline` runs it."""


@cache
def settings() -> dict[str, Setting]:
    return {setting.name: setting for setting in every_setting()}


def recipe(setting: Setting, device: torch.device | str) -> TrainedRecipe:
    made = setting.recipe()
    assert isinstance(made, TrainedRecipe)
    return replace(made, device=device)


def model(setting: Setting, device: torch.device | str, seed: int = 0) -> nn.Module:
    return placed(setting.model(seed), device)


def weights(module: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().double().cpu().flatten() for p in module.parameters()]).numpy()


OWN_SETTING = {"in_context": whole_class, "object_attribution": scenes_setting, "object_occlusion": scenes_setting}
"""Parts that refuse to forget single examples, or data without objects."""


def suitable(part: Any, name: str = "") -> list[Setting]:
    if name in OWN_SETTING:
        return [OWN_SETTING[name]()]
    memory = bool(getattr(part, "blocks", ()))
    found = [settings()[name] for name in ((MEMORY,) if memory else (REGULARISED, TOKENS, PLAIN))]
    needs = getattr(part, "needs", frozenset()) - {"recipe"}
    found = [setting for setting in found if needs <= setting.problem.objective.provides]
    return accepted(part, found)[:2]


def near(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-3) -> None:
    # The optimiser and the attention of the CPU round in another order.
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def answers(model: nn.Module, problem: Problem) -> np.ndarray:
    """Probabilities on the test set: a weight without influence may have any value."""
    with torch.no_grad():
        decisions = problem.objective.decisions(model.eval(), problem.data.batch(problem.test))
    return decisions.logits.double().softmax(1).cpu().numpy()


@pytest.mark.parametrize("name", [n for n in registry.names("method") if n not in OWN_FILE])
def test_method(name: str) -> None:
    method = registry.load("method", name)(**SMALL.get(name, {}))
    for setting in suitable(method):
        done = [
            method(model(setting, device), setting.problem, recipe(setting, device), 5).model
            for device in ("cpu", FAKE)
        ]
        assert all(p.device == FAKE for p in done[1].parameters())
        near(*(answers(made, setting.problem) for made in done), tolerance=0.01)


def test_variants_of_rem() -> None:
    setting = settings()[MEMORY]
    for variant in ("no_removal", "no_redirection", "ascent", "npo"):
        done = REM(epochs=1, variant=variant)(model(setting, FAKE), setting.problem, None, 5)  # type: ignore[arg-type]
        assert first_parameter(done.model).device == FAKE


ATTACKS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in registry.names("attack")),
    ("relearn", {"k": 1, "source": "test", "epochs": 1}),
    ("relearn", {"k": 1, "source": "forget", "epochs": 1}),
]


@pytest.mark.parametrize(("name", "given"), ATTACKS)
def test_attack(name: str, given: dict[str, Any]) -> None:
    attack = registry.load("attack", name)(**given)
    for setting in [settings()[REGULARISED]]:
        done = [
            attack(start := model(setting, device), Case(0, setting.problem, start, recipe(setting, device)), 5)
            for device in ("cpu", FAKE)
        ]
        near(*(attacked.curve.values for attacked in done))
        assert done[1].curve.values.dtype == np.float64 and first_parameter(done[1].model).device == FAKE


AUDITS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"demonstrations": (1, 2)} if name == "in_context" else {}) for name in registry.names("audit")),
    ("membership", {"attack": "loss"}),
    ("membership", {"attack": "confidence"}),
]


@pytest.mark.parametrize(("name", "given"), AUDITS)
def test_audit(name: str, given: dict[str, Any]) -> None:
    audit = registry.load("audit", name)(**given)
    for setting in suitable(audit, name):
        scores = [
            audit(model(setting, device, 1), case(setting, device, audit.shadow_pairs), 5) for device in ("cpu", FAKE)
        ]
        for ours, theirs in zip(*scores, strict=True):
            near(ours.values, theirs.values)
            assert theirs.values.dtype == np.float64


def case(setting: Setting, device: torch.device | str, pairs: int = 0) -> Case:
    shadows = Shadows(*([model(setting, device, i) for i in range(start, start + pairs)] for start in (2, 2 + pairs)))
    original = model(setting, device)
    return Case(0, setting.problem, original, recipe(setting, device), shadows=shadows if pairs else None)


@pytest.mark.parametrize("name", registry.names("diagnostic"))
def test_diagnostic(name: str) -> None:
    diagnostic = registry.load("diagnostic", name)(**SMALL.get(name, {}))
    setting = OWN_SETTING.get(name, lambda: settings()[PLAIN])()
    ours, theirs = (diagnostic(case(setting, device), 5) for device in ("cpu", FAKE))
    assert list(ours) == list(theirs)
    near(*(np.array([float(e.value) for e in found.values()]) for found in (ours, theirs)))


def test_training_starts_from_the_same_weights_on_every_device() -> None:
    setting = settings()[REGULARISED]
    ours, theirs = (recipe(setting, device).build(3) for device in ("cpu", FAKE))
    assert first_parameter(theirs).device == FAKE
    assert checkpoint.dump(ours) == checkpoint.dump(theirs)
    done = [
        train_model(recipe(setting, device), setting.problem.data, setting.problem.train, 3) for device in ("cpu", FAKE)
    ]
    near(*map(weights, done))


def test_a_stored_model_stays_on_its_device() -> None:
    setting = settings()[REGULARISED]
    restored = checkpoint.restore(recipe(setting, FAKE).build(0), checkpoint.dump(model(setting, "cpu")), "model")
    assert all(p.device == FAKE for p in restored.parameters())


def test_micro_batches_keep_the_random_state_of_the_device() -> None:
    """Dropout on the device must be the same when a micro-batch is computed again."""
    setting = settings()[PLAIN]
    before, batch = Backend.kept, setting.problem.data.batch(setting.problem.train)
    with micro_batches(4):
        setting.problem.objective.loss(model(setting, FAKE).train(), batch)
    assert Backend.kept - before == 4


def test_monitors_of_training() -> None:
    setting = settings()[PLAIN]
    batch = setting.problem.data.batch(setting.problem.train)

    def mean_loss(module: nn.Module, batch: Batch) -> Tensor:
        return setting.problem.objective.loss(module, batch)

    watches = []
    for device in ("cpu", FAKE):
        student, watch = model(setting, device), SharpnessMonitor(mean_loss, [batch], every=1)
        for step in (1, 2):
            watch(step, student)
        watches.append(watch)
    near(*(np.array(watch.sharpness + watch.losses) for watch in watches))


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the spec to the record, with every stage there is."""
    spec = parse(
        tiny(
            seeds=[0],
            gallery=True,
            method=[{"name": "finetune", "epochs": 1}, {"name": "ssd", "after": "finetune"}],
            attack=[{"name": "relearn", "epochs": 1}],
            audit=[{"name": "loss"}, {"name": "distance"}],
            diagnostic=[{"name": "coherence"}],
        ),
        tmp_path,
    )
    plain = run(spec, tmp_path / "cpu")
    monkeypatch.setattr(parts, "resolve", lambda name: FAKE)
    there = run(spec, tmp_path / "fake")
    assert json.loads((there.folder / "env.json").read_text())["device"] == "fake"
    values = [[row["value"] for row in outcome.rows if row["metric"] == "loss"] for outcome in (plain, there)]
    near(*(np.array(found, dtype=float) for found in values), tolerance=0.02)


def test_a_case_from_tensors_on_the_device() -> None:
    """A notebook: model and data where the user put them, references where the model is."""
    images, targets = torch.randn(40, 6), torch.arange(40) % 3
    sets = {"forget": slice(0, 8), "retain": slice(8, 30), "test": slice(30, 40)}
    parts = {name: (images[at].to(FAKE), targets[at].to(FAKE)) for name, at in sets.items()}

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def train(module: nn.Module, dataset: Any) -> None:
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for inputs, target in dataset:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs.to(FAKE)[None]), target.to(FAKE)[None]).backward()
            optimizer.step()

    original = build().to(FAKE)
    train(original, zip(images[:30], targets[:30], strict=True))
    case = expunge.case(original, recipe=expunge.recipe(build, train), **parts)
    assert first_parameter(case.reference).device == FAKE
    done = expunge.unlearn(case, "finetune", epochs=1)
    assert first_parameter(done.model).device == FAKE
    result = expunge.audit(done, case, references=1, attacks=[], audits=["loss"])
    assert result.table.rows()


class Mixing(Method):
    """Adds a tensor of the CPU to its weights."""

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.ones(parameter.shape))
        return student


def test_a_method_that_mixes_devices_fails() -> None:
    setting = settings()[PLAIN]
    Mixing()(model(setting, "cpu"), setting.problem, None, 0)
    with pytest.raises(RuntimeError, match="same device"):
        Mixing()(model(setting, FAKE), setting.problem, None, 0)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda here, there: there + here,
        lambda here, there: torch.cat([there, here]),
        lambda here, there: torch.isin(there, here),
        lambda here, there: here[there.long()],
        lambda here, there: torch.randn(3, generator=torch.Generator(), device=FAKE),
        lambda here, there: torch.multinomial(there, 1, generator=torch.Generator()),
        lambda here, there: nn.functional.cross_entropy(there[None], here[:1].long()),
        lambda here, there: there.numpy(),
        lambda here, there: np.asarray(there),
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(mixing: Any) -> None:
    here = torch.ones(3)
    with pytest.raises((RuntimeError, TypeError)):
        mixing(here, here.to(FAKE))


def test_the_device_allows_what_a_gpu_allows() -> None:
    there: Tensor = torch.arange(4.0).to(FAKE)
    assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert there[torch.tensor([2, 0])].tolist() == [2, 0]
    assert there.cpu().numpy().tolist() == [0, 1, 2, 3] and float(there.sum()) == 6
