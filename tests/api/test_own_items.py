"""Data sets of every form: what has one meaning is converted and said, and anything else is refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import expunge
from expunge.base.errors import SpecError
from expunge.core.collect import collect
from expunge.core.copies import copies_in
from expunge.evidence.comparison import over_held_out, rows_of

X, Y = torch.rand(60, 1, 6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
IDS = range(12), range(12, 40), range(40, 60)
PARTS = {"forget": (X[:12], Y[:12]), "retain": (X[12:40], Y[12:40]), "test": (X[40:], Y[40:])}


def conv(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def changed(how: Callable[[Tensor, Tensor], Any], *names: str) -> dict[str, Any]:
    return {name: how(x, y) if name in names or not names else (x, y) for name, (x, y) in PARTS.items()}


def items(how: Callable[[Tensor, int], Any]) -> Callable[[Tensor, Tensor], Any]:
    return lambda x, y: [how(a, int(b)) for a, b in zip(x, y, strict=True)]


def picture(x: Tensor) -> Image.Image:
    return Image.fromarray((x[0] * 255).byte().numpy())


# DataLoaders


def dataset() -> TensorDataset:
    return TensorDataset(X[:12], Y[:12])


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(dataset(), batch_size=5, shuffle=True),
        lambda: DataLoader(dataset(), batch_size=5, shuffle=True, drop_last=True),
        lambda: DataLoader(dataset(), batch_size=5, sampler=SubsetRandomSampler(range(12))),
        lambda: DataLoader(dataset(), batch_sampler=[[3, 1, 2], [0], list(range(4, 12))]),
        lambda: DataLoader(dataset(), batch_size=5, shuffle=True, num_workers=1),
        lambda: DataLoader(dataset(), batch_size=None),
        lambda: DataLoader(dataset(), batch_size=5, drop_last=True, collate_fn=_collated),
    ],
    ids=["shuffled", "drop_last", "every id", "batch sampler", "workers", "no batches", "own collate"],
)
def test_a_loader_stands_for_its_data_set_in_its_order(loader: Callable[[], Any]) -> None:
    state = torch.get_rng_state()
    collected = collect(loader(), where="forget")
    assert torch.equal(collected.inputs, X[:12]) and torch.equal(collected.targets, Y[:12])  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())


def _collated(rows: Any) -> Any:
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


class Endless:
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1

    def __len__(self) -> int:
        return 12


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"sampler": WeightedRandomSampler([1.0] * 12, 12)}, r"draws 12 examples, \d of them distinct"),
        ({"sampler": SubsetRandomSampler([1, 4, 5])}, "draws 3 examples, 3 of them distinct"),
        ({"sampler": [0, 0, *range(12)]}, "draws 14 examples, 12 of them distinct"),
        ({"batch_sampler": BatchSampler(range(12), 5, drop_last=True)}, "draws 10 examples, 10 of them distinct"),
        ({"sampler": Endless()}, "draws more than 24 examples, 1 of them distinct"),
    ],
    ids=["weighted", "subset", "repeats", "batch sampler", "endless"],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_loader_that_repeats_or_loses_examples_is_refused(
    settings: dict[str, Any], counts: str, in_memory: bool
) -> None:
    loader = DataLoader(dataset(), **settings)
    with pytest.raises(SpecError, match=rf"^forget: its sampler {counts}.* from a data set of 12; .*loader\.dataset"):
        expunge.case(conv(), **PARTS | {"forget": loader}, in_memory=in_memory)


# Copies


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("parts", "note"),
    [
        ({"forget": (X[:4].repeat(5, 1, 1, 1), Y[:4].repeat(5))}, "20 examples are copies of 4, which count as 4"),
        ({"retain": (X[6:40], Y[6:40])}, "6 of 12 examples have a copy in retain"),
        ({"retain": (X[6:40], (Y[6:40] + 1) % 3)}, "6 of 12 examples have a copy in retain"),
        ({"test": (X[10:60], Y[10:60])}, "2 of 12 examples have a copy in test"),
        ({"holdout": (X[:3].clone(), Y[:3])}, "3 of 12 examples have a copy in holdout"),
        ({"test": (X[39:60], Y[39:60])}, "test: 1 of 21 examples have a copy in retain"),
    ],
    ids=["in forget", "in retain", "relabelled in retain", "in test", "in holdout", "test in retain"],
)
def test_copies_form_one_group_and_are_counted(
    parts: dict[str, Any], note: str, in_memory: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: TensorDataset(*pair) for name, pair in (PARTS | parts).items()}
    case = expunge.case(conv(), **given, in_memory=in_memory)
    assert note in capsys.readouterr().err and any(note in line for line in copies_in(case.problem))


def test_without_copies_nothing_is_grouped_or_said(capsys: pytest.CaptureFixture[str]) -> None:
    case = expunge.case(conv(), **PARTS)
    assert case.problem.data.groups is None and "cop" not in capsys.readouterr().err


def test_five_copies_are_as_much_evidence_as_one() -> None:
    def contrast(forget: tuple[Tensor, Tensor]) -> tuple[float, int]:
        case = expunge.case(conv(), **PARTS | {"forget": forget})
        result = expunge.audit(expunge.unlearn(case, "random_relabel", epochs=1), case, attacks=[], audits=[])
        [quantity] = [q for q in result.table.quantities("random_relabel") if q.role == "knowledge"]
        [row] = rows_of(quantity, over_held_out)
        return row.range.sampling, quantity.examples

    x, y = PARTS["forget"]
    once, copied = contrast((x, y)), contrast((x.repeat(5, 1, 1, 1), y.repeat(5)))
    # The exposed part of the forget set is drawn by groups, so the two differ a little, and not by the root of five.
    assert once[1] == copied[1] and copied[0] == pytest.approx(once[0], rel=0.25)


# Conversions


@pytest.mark.parametrize(
    ("model", "parts", "said"),
    [
        (conv(), changed(items(lambda x, y: (x, y, "a.png")), "forget"), "items have 3 fields"),
        (conv(), changed(lambda x, y: TensorDataset(x, y, torch.arange(len(x))), "forget"), "items have 3 fields"),
        (conv(), changed(items(lambda x, y: (x, y, 7, {"path": "a"})), "retain"), "items have 4 fields"),
        (conv(), changed(lambda x, y: DataLoader(TensorDataset(x, y, y), batch_size=5), "test"), "items have 3 fields"),
        (conv(), changed(items(lambda x, y: (picture(x), y))), "PIL images became tensors"),
        (conv(), changed(items(lambda x, y: {"img": picture(x), "target": y})), "PIL images became tensors"),
        (conv(3), changed(items(lambda x, y: (picture(x).convert("RGB"), y))), "PIL images became tensors"),
        (conv(), changed(lambda x, y: ((x * 255).byte(), y)), "bytes are divided by 255"),
        (conv(), changed(lambda x, y: ((x * 255).byte().numpy(), y.numpy())), "bytes are divided by 255"),
        (conv(), changed(lambda x, y: (x.movedim(1, 3), y)), "channels move from the last place"),
        (conv(), changed(lambda x, y: ((x * 255).byte().movedim(1, 3), y)), "by 255, and channels move"),
        (conv(), changed(lambda x, y: (x[:, 0], y)), "a dimension for their one channel"),
        (conv(), changed(lambda x, y: (x > 0.5, y)), "booleans become the numbers 0 and 1"),
    ],
    ids=[
        "label and path", "label and index", "four fields", "loader of three", "PIL", "PIL in dicts", "PIL in colour",
        "bytes", "bytes of NumPy", "HWC", "HWC in bytes", "no channel", "booleans",
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_memory", [True, False])
def test_what_has_one_meaning_is_converted_and_said(
    model: nn.Module, parts: dict[str, Any], said: str, in_memory: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not in_memory:
        parts = {n: TensorDataset(*map(torch.as_tensor, p)) if isinstance(p, tuple) else p for n, p in parts.items()}
    case = expunge.case(model, **parts, in_memory=in_memory)
    assert said in capsys.readouterr().err
    inputs = case.problem.data.batch(torch.arange(60)).inputs
    assert inputs.dtype == torch.float32 and inputs.shape[1:] == (model[0].in_channels, 6, 8)  # type: ignore[index]
    expected = (X > 0.5).float() if "booleans" in said else X
    # Bytes have 256 steps; the model sees the picture whatever its form was.
    assert torch.allclose(inputs, expected.expand_as(inputs), atol=1 / 250)
    assert case.problem.data.targets.tolist() == Y.tolist()


def test_lists_and_columns_of_labels_are_taken() -> None:
    plain = nn.Linear(4, 3)
    rows = {name: (x.flatten(1)[:, :4].tolist(), y.tolist()) for name, (x, y) in PARTS.items()}
    assert expunge.case(plain, **rows).problem.data.shape == (4,)
    columns = changed(lambda x, y: (x, y[:, None]))
    assert expunge.case(conv(), **columns).problem.data.targets.shape == (60,)


def test_masks_are_class_indices() -> None:
    indices = [Image.fromarray((x[0] > 0.5).byte().numpy()) for x in X]
    palettes = [mask.convert("P") for mask in indices]
    for masks in (indices, palettes):
        rows = {name: [(X[i], masks[i]) for i in ids] for name, ids in zip(PARTS, IDS, strict=True)}
        case = expunge.case(nn.Conv2d(1, 2, 1), **rows, objective="segmentation")
        assert torch.equal(case.problem.data.targets, (X[:, 0] > 0.5).long())
    with pytest.raises(SpecError, match="which holds colours and no class indices"):
        collect([(X[0], indices[0].convert("RGB"))], where="forget")


class Frame:
    """What a data frame looks like to code that knows no pandas."""

    def to_numpy(self) -> Any:
        return np.zeros((3, 2))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(X[:12], Y[:12], strict=True)

    def __len__(self) -> int:
        return 12


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((X[:12].numpy(), np.array(["cat"] * 12)), r"the targets are text.*numbers.*names\.index"),
        ([(x, "cat") for x in X[:12]], "the target of item 0 is text.*names"),
        ([{"image": x, "label": "cat"} for x in X[:12]], "the target of item 0 is text"),
        ([("a.png", 1)] * 3, "the input of item 0 is text"),
        ([(None, 1)] * 3, "the input of item 0 is NoneType of object"),
        ([(x, x, 1) for x in X[:3]], "3 fields, and it is not clear which of them is the target"),
        (Frame(), r"found a Frame.*to_numpy"),
        ((Frame(), Frame()), "found a Frame"),
        ([(Frame(), 1)], "found a Frame"),
        (Stream(), r"Stream is a stream.*list\(dataset\)"),
        (iter([(X[:5], Y[:4]), (X[5:9], Y[4:9])]), r"inputs have shape \[5, 1, 6, 8\] and targets \[4\]"),
        ((X[:12].long() + 5, Y[:12]), r"a forward pass on inputs \[2, 1, 6, 8\] torch.int64 failed"),
        ([(Image.new("I;16", (8, 6)), 1)] * 3, "of mode I;16, whose scale is not known"),
    ],
    ids=[
        "array of text", "text in items", "text in dicts", "paths", "nothing", "two inputs", "frame", "two frames",
        "frames in items", "stream", "batches of other sizes", "whole numbers", "sixteen bits",
    ],
)  # fmt: skip
def test_what_has_no_one_meaning_is_refused_with_a_remedy(source: Any, message: str) -> None:
    parts = dict.fromkeys(PARTS, source) if "int64" in message else PARTS | {"forget": source}
    with pytest.raises(SpecError, match=message):
        expunge.case(conv(), **parts)


def test_one_logit_is_no_class() -> None:
    yes_or_no = changed(lambda x, y: (x, (y > 0).long()))
    one = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    with pytest.raises(SpecError, match=r"the model has one output.*multilabel"):
        expunge.case(one, **yes_or_no)
    columns = changed(lambda x, y: (x, (y > 0).long()[:, None]))
    assert expunge.case(one, **columns, objective="multilabel").problem.objective.outputs == 1


@pytest.mark.parametrize("kind", [torch.long, torch.float])
def test_one_hot_targets_are_refused_with_both_meanings(kind: torch.dtype) -> None:
    with pytest.raises(SpecError, match=r"targets \[60, 3\] are one-hot.*argmax\(1\).*multilabel"):
        expunge.case(conv(), **changed(lambda x, y: (x, nn.functional.one_hot(y, 3).to(kind))))


class Raising(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such table")


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(47, 3)), "RuntimeError: mat1 and mat2"),
        (nn.Sequential(nn.Flatten(), Raising(48, 3)), "KeyError: 'no such table'"),
        (nn.Bilinear(8, 8, 3), "TypeError: .*missing 1 required positional argument"),
        (nn.Sequential(nn.Embedding(5, 3), nn.Flatten()), "RuntimeError: Expected tensor for argument"),
    ],
    ids=["width", "error of its own", "two arguments", "embedding"],
)
def test_a_forward_pass_that_fails_names_the_inputs(model: nn.Module, finding: str) -> None:
    with pytest.raises(
        SpecError, match=rf"^model \(.*a forward pass on inputs \[2, 1, 6, 8\] torch.float32 .*{finding}"
    ):
        expunge.case(model, **PARTS)


# Random items


class Noisy(Dataset[Any]):
    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return X[index] + float(self.draw()), Y[index]


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand(()), np.random.rand, lambda: __import__("random").random(), lambda: torch.randint(9, ())],
    ids=["torch", "NumPy", "Python", "whole numbers"],
)
def test_a_random_data_set_is_read_alike_in_two_cases_of_one_seed(
    draw: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def inputs(seed: int) -> Tensor:
        torch.rand(3), np.random.rand(3)
        return expunge.case(conv(), **PARTS | {"forget": Noisy(draw)}, seed=seed).problem.data.inputs  # type: ignore[no-any-return]

    assert torch.equal(inputs(1), inputs(1)) and not torch.equal(inputs(1), inputs(2))
    assert "forget: items change from read to read" in capsys.readouterr().err
    with pytest.raises(SpecError, match="forget: items change from read to read"):
        lazy = {name: TensorDataset(*pair) for name, pair in PARTS.items()}
        expunge.case(conv(), **lazy | {"forget": Noisy(draw)}, in_memory=False)


def test_a_function_as_method_draws_the_same_numbers_twice() -> None:
    case = expunge.case(conv(), **PARTS)
    # Read at once: the three results must not be one model that was changed three times.
    weights = [expunge.unlearn(case, f"{__name__}:drawing").model[0].bias.tolist() for _ in "123"]  # type: ignore[index]
    assert weights[0] == weights[1] == weights[2]


def drawing(model: nn.Module, problem: Any, recipe: Any, seed: int, budget: int | None) -> Any:
    from expunge.core.case import Cost, Unlearned

    with torch.no_grad():
        model[0].bias.copy_(torch.rand(4) + np.random.rand())  # type: ignore[index, operator]
    return Unlearned(model, "drawing", Cost(0, 0.0))
