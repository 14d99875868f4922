"""Memory is predicted before a run, from two small passes, and a run that cannot fit is refused before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.base.spec import parse
from expunge.core import footprint
from expunge.core.footprint import Live, step_bytes, weight_bytes
from expunge.core.method import Method
from expunge.pipeline.memory import Footprints, MemoryForecast, forecast_memory, gigabytes
from expunge.pipeline.plan import Plan
from expunge.train import adapting
from helpers import Table, cli, finished, run, tiny, write_spec

WIDE = {"name": "mlp", "widths": [512, 256]}
STEPS = {"epochs": 1, "batch_size": 8}


def plan_of(**changes: object) -> Plan:
    return Plan(parse(tiny(**{"seeds": [0], "model": WIDE, "attack": [], "audit": [], **changes}), Path()))


TEXTS: Table = {
    "data": {"name": "python_docs", "train": 20, "test": 4},
    "model": {"name": "gpt", "width": 32, "layers": 2},
    "forget": {"name": "planted_text", "count": 4, "copies": 2},
}
MODELS: dict[str, Table] = {
    "mlp": {},
    "cnn": {"data": {"name": "fashion_mnist", "train": 40, "test": 20}, "model": {"name": "cnn"}},
    "gpt": TEXTS,
}


@pytest.mark.parametrize("name", MODELS)
def test_two_small_passes_give_the_memory_of_a_large_one(name: str) -> None:
    plan = plan_of(**MODELS[name])
    model, data, objective, batch = plan.recipe(plan.data).build(0).train(), plan.data, plan.data.objective, 16
    predicted = step_bytes(model, data, lambda b: objective.loss(model, b), batch)
    whole, saved = data.batch(data.train[:batch]), dict[int, int]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with Live() as live, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        gradients = torch.autograd.grad(objective.loss(model, whole), list(model.parameters()))
        del gradients
    assert predicted == pytest.approx(live.peak, rel=0.02)
    # Measured in another way: what the backward pass keeps is part of it.
    kept = sum(size for place, size in saved.items() if place not in weights)
    assert 0 < kept <= predicted


METHODS: dict[str, Table] = {
    "finetune": STEPS,
    "finetune with sgd": {**STEPS, "name": "finetune", "optimizer": "sgd"},
    "npo": {**STEPS, "forget_batch_size": 4},
    "random_relabel": {**STEPS, "forget_batch_size": 4},
    "random_relabel with kl": {**STEPS, "name": "random_relabel", "forget_batch_size": 4, "retain": "kl"},
    "bad_teacher": STEPS,
    "scrub": {**STEPS, "epochs": 3, "rewind": True, "forget_batch_size": 4},
    "delete": STEPS,
    "salun": {**STEPS, "forget_batch_size": 4},
    "task_negation": STEPS,
    "retrain": {},
    "ssd": {},
    "npo by an adapter": {**STEPS, "name": "npo", "forget_batch_size": 4, "adapter": {"rank": 4}},
    "scrub by an adapter": {**STEPS, "name": "scrub", "forget_batch_size": 4, "adapter": {"rank": 4}},
}


@pytest.mark.parametrize("label", METHODS)
def test_a_methods_memory_is_that_of_its_call(label: str) -> None:
    """Every tensor of the call is followed, teachers, states of the optimiser and gradients among them."""
    entry = {"name": label, **METHODS[label], "label": "it"}
    plan = plan_of(method=[entry], train={"epochs": 1, "batch_size": 8})
    [stage] = [stage for stage in plan.stages if stage.kind == "unlearn"]
    footprints, problem = Footprints(plan), plan.problem(0, {})
    model, adapter = plan.recipe(problem.data).build(0), plan.adapters.get(("method", "it"))
    with Live() as live:
        given, seen = adapting.given(model, adapter, 0, "it"), adapting.seen(model, adapter)
        method = plan.methods["it"]
        assert isinstance(method, Method)
        method(given, problem, plan.recipe(problem.data), 0, original=seen)
    start = weight_bytes(model)
    assert footprints.during(stage) == pytest.approx(live.peak + start, rel=0.15)
    # Its input and its result are there while the result is written.
    assert footprints.of(stage) >= max(footprints.during(stage), 5 * start)


def test_what_saves_memory_lowers_the_forecast() -> None:
    def need(**settings: object) -> int:
        plan = plan_of(**TEXTS, method=[{"name": "finetune", **STEPS, "batch_size": 16, **settings}])
        return Footprints(plan).of(next(stage for stage in plan.stages if stage.kind == "unlearn"))

    whole = need()
    assert need(batch_size=4) < need(accumulate=8) < whole
    assert need(optimizer="sgd") < whole
    assert need(adapter={"rank": 2}) < whole + weight_bytes(nn.Linear(32, 32))


def test_examples_that_the_task_adds_count() -> None:
    """Planted texts are no part of the data set, and they are in the batches."""

    def need(count: int) -> int:
        forget = {"name": "planted_text", "count": count, "copies": 2}
        table = TEXTS | {"data": {"name": "python_docs", "train": 8, "test": 4}, "forget": forget}
        plan = plan_of(**table, method=[{"name": "npo", "batch_size": 8, "forget_batch_size": 24}])
        return Footprints(plan).of(next(stage for stage in plan.stages if stage.kind == "unlearn"))

    assert need(2) < need(6) < need(12)


def test_tied_weights_count_once() -> None:
    layer = nn.Linear(8, 8, bias=False)
    tied = nn.Sequential(layer, layer)
    other = nn.Linear(8, 8, bias=False)
    other.weight = layer.weight
    assert weight_bytes(tied) == weight_bytes(nn.Sequential(layer, other)) == weight_bytes(layer) == 256
    layer.weight.requires_grad_(False)
    assert weight_bytes(tied, trained=True) == 0


@pytest.mark.parametrize("large", [True, False])
def test_what_training_left_is_given_back_before_a_large_model_is_written(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(footprint, "LARGE", 0)
    layer = nn.Linear(8, 8)
    before = layer.weight.clone()
    layer(torch.ones(1, 8)).sum().backward()
    assert footprint.release(layer) is layer
    assert (layer.weight.grad is None) == large and torch.equal(layer.weight, before)


@pytest.mark.parametrize("arguments", [["--workers", 1], ["--dry-run"], ["--dry-run", "--json"]])
@pytest.mark.parametrize("changes", [{}, {"method": [{"name": "npo"}]}, {"method": [], "attack": []}])
def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], changes: Table
) -> None:
    monkeypatch.setattr("expunge.pipeline.memory.free_bytes", lambda: 1000)
    result = cli("run", write_spec(tmp_path, tiny(**changes)), "--out", tmp_path / "runs", *arguments)
    assert result.code == 3, result.err
    assert ", and 0.001 MB are free" in result.message() and "--workers 1" in result.message()
    assert not (tmp_path / "runs").exists()


def test_what_is_stored_already_needs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tiny(seeds=[0], attack=[], audit=[], method=[])
    finished(run(table, tmp_path / "runs"))
    monkeypatch.setattr("expunge.pipeline.memory.free_bytes", lambda: 1000)
    finished(run(table, tmp_path / "runs"))


def test_the_dry_run_prints_it_in_one_line(tmp_path: Path) -> None:
    table = write_spec(tmp_path, tiny(method=[{"name": "bad_teacher"}], model=WIDE, attack=[]))
    lines = finished(cli("run", table, "--out", tmp_path / "runs", "--dry-run", "--workers", 1)).out.splitlines()
    [line] = [line for line in lines if line.startswith("Memory: up to ")]
    assert line.endswith("are free.") and "(bad_teacher)" in line
    facts = json.loads(finished(cli("run", table, "--out", tmp_path / "runs", "--dry-run", "--json")).out)
    assert facts["memory"]["what"] == "bad_teacher" and facts["memory"]["bytes"] > 0


def test_workers_add_up_and_a_model_that_cannot_be_followed_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(method=[{"name": "finetune"}, {"name": "npo"}])
    one, two = (forecast_memory(plan, plan.stages, workers) for workers in (1, 2))
    assert one is not None and two is not None and two.bytes > one.bytes and one.what == two.what == "npo"

    def broken(*_: object) -> int:
        raise RuntimeError("no")

    monkeypatch.setattr(Footprints, "of", broken)
    assert forecast_memory(plan, plan.stages, 1) is None


@pytest.mark.parametrize(
    ("count", "text"), [(1_230_000_000, "1.2 GB"), (22_000_000_000, "22 GB"), (999, "0.001 MB"), (142e9, "142 GB")]
)
def test_figures_have_two_digits(count: int, text: str) -> None:
    assert gigabytes(int(count)) == text
    assert str(MemoryForecast(int(count), "npo", 22 * 10**9)) == f"Memory: up to {text} (npo); 22 GB are free."
