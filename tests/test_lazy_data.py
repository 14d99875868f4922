"""Data that are read when they are needed: the same numbers as from memory, flat memory, augmentations in training."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.augmentations.crop import Crop
from expunge.augmentations.flip import Flip
from expunge.augmentations.noise import Noise
from expunge.base.errors import RunError, SpecError
from expunge.core.case import Case, train_model
from expunge.core.data import Data
from expunge.core.lazy import LazyInputs
from expunge.core.problem import Problem
from expunge.data.digits import Digits
from expunge.models.mlp import MLP
from expunge.tasks.poison_trigger import PoisonTrigger
from expunge.train.loop import batches, in_order
from expunge.train.training import TrainedRecipe, Training


class Listed(Dataset[Any]):
    """A map-style data set over tensors, which notes what is read."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets, self.read = inputs, targets, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return self.inputs[index], int(self.targets[index])


def pair(workers: int = 0) -> tuple[Data, Data]:
    data = Digits(train=120, test=60)()
    return data, replace(data, inputs=LazyInputs(Listed(data.inputs, data.targets), workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_lazy_inputs_train_the_same_model(workers: int) -> None:
    weights = []
    for data in pair(workers):
        model = train_model(TrainedRecipe(MLP(widths=[16]), Training(epochs=2), data), data, data.train, 3)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_what_is_evaluated_is_read_in_order_and_only_then() -> None:
    data, lazy = pair()
    assert isinstance(lazy.inputs, LazyInputs)
    dataset = lazy.inputs.dataset
    assert isinstance(dataset, Listed) and dataset.read <= 1
    for a, b in zip(in_order(data, data.test, 32), in_order(lazy, lazy.test, 32), strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
    assert dataset.read <= 61
    assert lazy.shape == data.shape == (1, 8, 8)


def test_a_trigger_is_put_on_what_is_read_lazily() -> None:
    data, lazy = pair()
    task = PoisonTrigger(count=10, size=2)
    (a, b) = (task(each, 0, {}) for each in (data, lazy))
    assert torch.equal(a.corrupted, b.corrupted)
    marked, plain = b.data.batch(b.corrupted).inputs, data.batch(b.corrupted).inputs
    assert torch.equal(marked, a.data.batch(a.corrupted).inputs)
    assert (marked[:, :, -2:, -2:] == data.inputs.max()).all() and torch.equal(marked[..., :6, :6], plain[..., :6, :6])
    assert torch.equal(lazy.batch(b.corrupted).inputs, plain), "the data that came in are as they were"


def test_a_value_that_is_not_finite_is_named_when_it_is_read() -> None:
    data, _ = pair()
    broken = data.inputs.clone()
    broken[7, 0, 3, 3] = float("nan")
    lazy = replace(data, inputs=LazyInputs(Listed(broken, data.targets)))
    with pytest.raises(RunError, match="example 7 are not finite"):
        list(in_order(lazy, lazy.train, 16))


@pytest.mark.parametrize("wrong", [[1, 2], iter([1])])
def test_what_cannot_be_read_is_refused(wrong: Any) -> None:
    data, _ = pair()
    with pytest.raises(SpecError, match=r"map-style|inputs but"):
        replace(data, inputs=LazyInputs(wrong))


PEAK = """
import resource, sys
import torch
from torch import nn
from torch.utils.data import Dataset
from expunge.core.data import Data
from expunge.core.lazy import LazyInputs
from expunge.core.problem import Problem
from expunge.train.loop import batches, in_order

count = int(sys.argv[1])
torch.set_num_threads(1)

class Images(Dataset):
    def __len__(self):
        return count
    def __getitem__(self, index):
        return torch.full((3, 96, 96), index / count)

ids = torch.arange(count)
data = Data(LazyInputs(Images()), ids % 10, ids[: count // 2], ids[count // 2 :], tuple("0123456789"))
problem = Problem(data, ids[:10], ids[10 : count // 2], data.test)
model = nn.Sequential(nn.AvgPool2d(48), nn.Flatten(), nn.Linear(12, 10))
taken = 0
for source in (batches(data, data.train, 64, 1, torch.Generator().manual_seed(0)), in_order(data, data.test)):
    for batch in source:
        problem.objective.loss(model, batch)
        taken += batch.size
assert taken == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_stays_flat() -> None:
    """50,000 images of 3 x 96 x 96 are 5.5 GB; peak memory is that of 2,000, give or take a batch of 57 MB."""
    peaks = []
    for count in (2_000, 50_000):
        run = subprocess.run([sys.executable, "-c", PEAK, str(count)], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout) / 1024)
    assert peaks[1] < peaks[0] + 60, peaks


def test_a_notebook_reads_its_data_sets_batch_by_batch() -> None:
    import expunge

    data, _ = pair()
    parts = {"forget": slice(0, 20), "retain": slice(20, 120), "test": slice(120, 180)}
    sets = {name: Listed(data.inputs[rows], data.targets[rows]) for name, rows in parts.items()}

    def build() -> nn.Module:
        return MLP(widths=[8])(data)

    def train(model: nn.Module, dataset: Any) -> None:
        inputs, targets = torch.stack([x for x, _ in dataset]), torch.tensor([y for _, y in dataset])
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    model = build()
    train(model, Listed(data.inputs[:120], data.targets[:120]))
    rows = []
    for in_memory in (True, False):
        case = expunge.case(model, recipe=expunge.recipe(build, train), in_memory=in_memory, **sets)
        assert isinstance(case.problem.data.inputs, LazyInputs) != in_memory
        done = expunge.unlearn(case, "random_relabel", epochs=1)
        rows.append(expunge.audit(done, case, references=1).rows)
    assert repr(rows[0]) == repr(rows[1])
    with pytest.raises(SpecError, match="map-style data set"):
        expunge.case(model, forget=iter([1]), retain=sets["retain"], test=sets["test"], in_memory=False)


# --- Augmentations ---------------------------------------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_flip_mirrors_whole_images_about_half_of_the_time() -> None:
    images = torch.arange(400 * 12.0).view(400, 1, 3, 4)
    flipped = Flip()(images, seeded())
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 150 < int(mirrored.sum()) < 250
    assert torch.equal(Flip(probability=1.0)(images, seeded()), images.flip(-1))


def test_a_crop_shifts_by_at_most_the_padding() -> None:
    images = torch.zeros(300, 1, 9, 9)
    images[:, :, 4, 4] = 1
    places = Crop(padding=2)(images, seeded()).flatten(1).argmax(1)
    rows, columns = places // 9 - 4, places % 9 - 4
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}
    with pytest.raises(SpecError, match="crop"):
        Crop()(torch.zeros(3, 5), seeded())


def test_noise_has_its_standard_deviation() -> None:
    drawn = Noise(sigma=0.5)(torch.zeros(100, 100), seeded())
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.02) and abs(float(drawn.mean())) < 0.02


def test_training_sees_augmented_inputs_and_evaluation_does_not() -> None:
    data = replace(Digits(train=120, test=60)(), augmentations=(Flip(probability=1.0),))
    (batch,) = batches(data, data.train, 200, 1, seeded())
    assert torch.equal(batch.inputs, data.inputs[batch.ids].flip(-1))
    (plain,) = in_order(data, data.train)
    assert torch.equal(plain.inputs, data.inputs[plain.ids])


def test_augmentation_is_drawn_from_the_stages_generator() -> None:
    data = replace(Digits(train=60, test=30)(), augmentations=(Noise(),))
    first, again, other = (next(batches(data, data.train, 16, 1, seeded(s))).inputs for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_attack_augments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.attacks.relearn import Relearn

    calls: list[int] = []

    def counted(inputs: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(inputs))
        return inputs

    data = replace(Digits(train=60, test=30)(), augmentations=(counted,))
    problem = Problem(data, data.train[:10], data.train[10:], data.test)
    model: nn.Module = MLP(widths=[8])(data)
    Relearn(epochs=2, batch_size=25)(model, Case(0, problem, model), 0)
    assert calls == [25, 25] * 2


def test_a_spec_augments(tmp_path: Path) -> None:
    from helpers import finished, run, tiny

    plain = finished(run(tiny(), tmp_path / "a"))
    changed = finished(run(tiny(augmentation=[{"name": "noise", "sigma": 0.2}]), tmp_path / "a", "--set", "name=noisy"))
    assert plain.out.splitlines()[:6] != changed.out.splitlines()[:6]
    refused = run(tiny(augmentation=[{"name": "flop"}]), tmp_path / "a")
    assert refused.code == 2 and "did you mean 'flip'?" in refused.message()
