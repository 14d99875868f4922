"""A spec for a model that nobody can train again: without references, and with models that the user filtered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from expunge.base.memory import MemoryStore
from expunge.base.spec import parse
from expunge.pipeline.beforehand import Beforehand
from expunge.pipeline.executor import Computation, Executor
from expunge.pipeline.plan import Plan
from expunge.pipeline.schedule import run_stages
from helpers import Table, cli, finished, run, write_spec, wrong_digits

FORGET, TRAIN, TEST = 40, 300, 400


def spec(**changes: object) -> Table:
    return {
        "name": "lost",
        "references": "none",
        "data": {"name": "arrays", "path": "own.npz"},
        "model": {"name": "mlp", "widths": [48], "weights": "mine.safetensors"},
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "finetune", "epochs": 1}],
        "attack": [{"name": "relearn", "epochs": 1}],
    } | changes


def net(x: torch.Tensor, y: torch.Tensor, seed: int, steps: int = 120) -> nn.Module:
    """Somebody's model; how it is trained is not known to the spec."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original, models that never saw the forget set, and models that are not what a reference must be."""
    path = tmp_path_factory.mktemp("lost")
    images, labels = wrong_digits(path, FORGET, TRAIN, TEST)
    x, y = torch.from_numpy(images[:TRAIN]), torch.from_numpy(labels[:TRAIN])
    tx, ty = torch.from_numpy(images[TRAIN : TRAIN + TEST]), torch.from_numpy(labels[TRAIN : TRAIN + TEST])
    # The last hundred test examples have wrong labels, too: the hold-out.
    ty = torch.cat([ty[:-100], (ty[-100:] + 1 + torch.arange(100) % 9) % 10])
    np.savez(path / "own.npz", x=x.numpy(), y=y.numpy(), tx=tx.numpy(), ty=ty.numpy())
    (path / "holdout.txt").write_text("\n".join(str(TRAIN + TEST - 100 + i) for i in range(100)))
    names = keys_of(path)
    made = {"mine": net(x, y, 0), "informed": net(x, y, 9), "blank": net(x, y, 1, steps=0)}
    made |= {f"filtered{i}": net(x[FORGET:], y[FORGET:], 2 + i) for i in range(4)}
    for name, model in made.items():
        save_file(dict(zip(names, model.state_dict().values(), strict=True)), path / f"{name}.safetensors")
    return path


def keys_of(path: Path) -> list[str]:
    """The names of the spec's model."""
    table = spec(model={"name": "mlp", "widths": [48]}, train={"epochs": 1}, attack=[], seeds=[0])
    del table["references"]
    finished(cli("unlearn", write_spec(path, table), "--save", path / "any.safetensors", "--out", path / "any"))
    # Safetensors files are sorted by size, and a state dict by layer.
    return sorted(load_file(path / "any.safetensors"), key=lambda name: (name.split(".")[-2], name.endswith("bias")))


def verdicts(folder: Path, out: Path, **changes: object) -> dict[str, Table]:
    table = write_spec(folder, spec(**changes))
    result = finished(cli("run", table, "--out", out, "--workers", 1, "--json"))
    return {verdict["model"]: verdict for verdict in json.loads(result.out)["verdicts"]}


SMOOTHED = {"name": "weight_distortion", "sigma": 0.3, "epochs": 40, "learning_rate": 1e-2}
REFERENCES = [f"filtered{i}.safetensors" for i in range(4)]


@pytest.mark.parametrize("holdout", [True, False])
def test_without_references_a_run_accuses_and_never_clears(folder: Path, tmp_path: Path, holdout: bool) -> None:
    forget = {"name": "indices", "path": "forget.txt"} | ({"holdout": "holdout.txt"} if holdout else {})
    copied = {"name": "checkpoint", "label": "filtered", "path": "filtered0.safetensors"}
    attack = spec()["attack"] if holdout else []
    found = verdicts(folder, tmp_path / "runs", forget=forget, method=[*spec()["method"], copied], attack=attack)
    assert "incomplete" in found["finetune"]["flags"]
    # A model that in truth never saw the forget set is not cleared, with whatever it is compared.
    assert "erased" not in found["filtered"]["flags"] and (
        not holdout or found["filtered"]["flags"] == ["inconclusive"]
    )
    root = tmp_path / "runs" / "lost"
    finished(cli("verify", root))
    manifest = json.loads((root / "manifest.json").read_text())
    assert "reference" not in manifest["models"] and manifest["seeds"] == [0]


def test_filtered_models_are_references(folder: Path, tmp_path: Path) -> None:
    copied = {"name": "checkpoint", "path": "filtered3.safetensors"}
    methods = [*spec()["method"], copied]
    found = verdicts(folder, tmp_path / "runs", references=REFERENCES[:3], method=methods, attack=[])
    assert "incomplete" in found["finetune"]["flags"] and found["checkpoint"]["verdict"] == "inconclusive"
    assert all("the user gave" in verdict["reasons"][-1] for verdict in found.values())
    root = tmp_path / "runs" / "lost"
    stored, given = (load_file(p) for p in (root / "models" / "reference-s1.safetensors", folder / REFERENCES[1]))
    assert all(torch.equal(stored[name], given[name]) for name in given)
    assert json.loads((root / "spec.json").read_text())["references"] == REFERENCES[:3]
    finished(cli("verify", root))
    # Two are too few to say anything.
    few = verdicts(folder, tmp_path / "few", references=REFERENCES[:2])
    assert few["finetune"]["verdict"] == "inconclusive" and "at least 3 references, found 2" in str(few)


REFUSED: dict[str, tuple[Table, int, str]] = {
    "the original itself": ({"references": [*REFERENCES[:2], "mine.safetensors"]}, 2, "are those of the original"),
    "one model twice": ({"references": [*REFERENCES[:2], REFERENCES[0]]}, 2, "would count as two"),
    "a model that saw the forget set": ({"references": ["informed.safetensors"]}, 2, "it knows the forget set"),
    "an untrained model": ({"references": ["blank.safetensors"]}, 2, "fits its training data as the original"),
    "no file": ({"references": ["nothing.safetensors"]}, 2, "nothing.safetensors: cannot read"),
    "no list": ({"references": 3}, 2, 'allowed: "retrain", "none", or a list of paths'),
    "an empty list": ({"references": []}, 2, 'write references = "none"'),
    "other seeds": ({"references": REFERENCES, "seeds": [0, 1]}, 2, "found 2 seeds, and there are 4"),
    "several seeds": ({"seeds": [0, 1, 2]}, 2, "found 3 seeds, and there is no reference"),
    "originals that are trained": ({"model": {"name": "mlp", "widths": [48]}}, 2, "it can train references too"),
    "a method that trains": ({"method": [{"name": "retrain"}]}, 3, "needs recipe"),
    "an audit that trains": ({"audit": [{"name": "u_lira"}]}, 3, "the spec says that none can be trained"),
    "a task that trains": ({"forget": {"name": "hard_examples", "count": 9}}, 3, "the spec says that none can be"),
    "a hold-out of training examples": (
        {"forget": {"name": "indices", "path": "forget.txt", "holdout": "forget.txt"}}, 2, "id 0 is no test example"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_reference_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    changes, code, words = REFUSED[name]
    result = cli("run", write_spec(folder, spec(**changes)), "--out", tmp_path / "runs", "--workers", 1)
    assert (result.code, words in result.message()) == (code, True), result.err


def test_a_changed_reference_is_another_reference(folder: Path, tmp_path: Path) -> None:
    for name in ("own.npz", "forget.txt", "mine.safetensors", *REFERENCES[:3]):
        shutil.copy(folder / name, tmp_path / name)
    table = spec(references=REFERENCES[:3], attack=[])
    finished(run(table, tmp_path / "runs"))
    shutil.copy(folder / REFERENCES[3], tmp_path / REFERENCES[0])
    again = finished(run(table, tmp_path / "runs"))
    assert "other contents of references[0]" in again.err
    stored = load_file(tmp_path / "runs" / "lost" / "models" / "reference-s0.safetensors")
    given = load_file(folder / REFERENCES[3])
    assert all(torch.equal(stored[name], given[name]) for name in given)


def test_audit_takes_the_same_spec(folder: Path, tmp_path: Path) -> None:
    table, out = write_spec(folder, spec()), tmp_path / "runs"
    finished(cli("unlearn", table, "--save", tmp_path / "model", "--out", out))
    done = finished(cli("audit", table, tmp_path / "model" / "weights.safetensors", "--out", out, "--workers", 1))
    assert "Held-out examples replace" in done.out or "incomplete" in done.out
    saved = finished(cli("run", table, "--out", out, "--workers", 1, "--save", tmp_path / "saved"))
    assert "**no reference**" in (tmp_path / "saved" / "finetune" / "README.md").read_text(), saved.err


UNKNOWN: dict[str, Table] = {
    "to models that the run trains": {
        "model": {"name": "mlp", "widths": [48]}, "references": "retrain", "seeds": [0, 1],
        "train": {"epochs": 1}, "attack": [],
    },
    "to the user's model, beside trained references": {
        "model": {"name": "mlp", "widths": [48], "weights": REFERENCES[3]}, "references": "retrain", "seeds": [0, 1],
        "train": {"epochs": 30, "learning_rate": 0.01}, "attack": [],
    },
    "to the user's model, beside filtered ones": {
        "model": {"name": "mlp", "widths": [48], "weights": REFERENCES[3]}, "references": REFERENCES[:3], "attack": [],
    },
    "to the user's model, without references": {
        "model": {"name": "mlp", "widths": [48], "weights": REFERENCES[3]}, "attack": [],
        "forget": {"name": "indices", "path": "forget.txt", "holdout": "holdout.txt"},
    },
}  # fmt: skip
KNOWN: dict[str, Table] = {
    "to models that the run trains": {
        "model": {"name": "mlp", "widths": [48]}, "references": "retrain", "seeds": [0, 1],
        "train": {"epochs": 60, "learning_rate": 0.01}, "attack": [],
    },
    "to the user's model, beside filtered ones": {"references": REFERENCES[:1], "attack": []},
    "to the user's model, without references": {
        "forget": {"name": "indices", "path": "forget.txt", "holdout": "holdout.txt"}, "attack": [],
    },
}  # fmt: skip
WARNING = "no audit shows that the model knows the forget set"


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_model_never_knew_is_said_before_unlearning_and_at_the_end(
    folder: Path, tmp_path: Path, name: str
) -> None:
    path = write_spec(folder, spec(**UNKNOWN[name]))
    result = finished(cli("run", path, "--out", tmp_path / "runs", "--workers", 1, "--json"))
    lines = result.err.splitlines()
    said = [number for number, line in enumerate(lines) if WARNING in line]
    method = next(number for number, line in enumerate(lines) if "unlearn finetune" in line)
    assert len(said) == 2 and said[0] < method < said[1], result.err
    assert WARNING in json.loads(result.out)["warning"]


@pytest.mark.parametrize("name", KNOWN)
def test_what_the_model_knows_is_not_called_unknown(folder: Path, tmp_path: Path, name: str) -> None:
    path = write_spec(folder, spec(**KNOWN[name]))
    assert WARNING not in finished(cli("run", path, "--out", tmp_path / "runs", "--workers", 1)).err


def test_methods_wait_for_what_is_judged_before_them_in_several_processes_too(folder: Path) -> None:
    plan = Plan(parse(spec(references=REFERENCES[:2]), folder))
    judged = Beforehand(plan, MemoryStore(), print).stages
    assert {(stage.kind, stage.model) for stage in judged} == {
        (kind, model) for model in ("original", "reference") for kind in (model, "audit")
    }
    tasks: list[Computation] = []

    @dataclass(frozen=True)
    class Collecting(Executor):
        def run(self, given: Sequence[Computation], begun: object, finished: object) -> None:
            tasks.extend(given)

    run_stages(
        plan, MemoryStore(), plan.stages, Collecting(), lambda *_: None, print,
        beforehand=Beforehand(plan, MemoryStore(), print),
    )  # fmt: skip
    [method] = [task for task in tasks if task.arguments[2].kind == "unlearn"]
    assert {stage.key for stage in judged} <= set(method.needs)
    assert [task.key for task in tasks[: len(judged)]] == [stage.key for stage in judged]
