"""Data sets hold what they say, and files of the user's that do not are refused in a sentence."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.base.errors import ExpungeError, MissingError, SpecError
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.data import fashion_mnist
from expunge.data._idx import read_idx
from expunge.data.arrays import Arrays
from expunge.data.digits import Digits
from expunge.data.fashion_mnist import CSCORES, DEBIAN, EMBEDDED, FILES, FashionMNIST
from expunge.data.python_docs import PythonDocs
from expunge.objectives.language_modelling import LanguageModelling

# --- Fashion-MNIST ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion() -> Data:
    return FashionMNIST()()


def test_the_embedded_images_are_there(fashion: Data) -> None:
    assert fashion.inputs.shape == (12_000, 1, 28, 28) and fashion.inputs.dtype == torch.float32
    assert (float(fashion.inputs.min()), float(fashion.inputs.max())) == (0.0, 1.0)
    assert fashion.train.tolist() == list(range(10_000)) and fashion.test.tolist() == list(range(10_000, 12_000))
    assert len(fashion.labels) == 10 and fashion.labels[9] == "ankle boot"
    counts = fashion.targets[fashion.train].bincount().tolist()
    assert counts == [942, 1027, 1016, 1019, 974, 989, 1021, 1022, 990, 1000]
    assert fashion.targets[fashion.test].bincount().tolist() == [200, 203, 214, 190, 219, 195, 197, 200, 194, 188]


def test_the_embedded_file_is_small_and_the_one_that_cscores_were_made_from() -> None:
    assert EMBEDDED.stat().st_size <= 6e6
    with np.load(EMBEDDED) as packed:
        digests = {name: hashlib.sha256(packed[name].tobytes()).hexdigest()[:16] for name in packed.files}
    assert digests == {
        "x": "2929ae1c7b89e0ee",
        "y": "1022e4632874e71b",
        "tx": "09bbac78738f0229",
        "ty": "a86243d2b2400909",
    }


def test_no_image_is_there_twice(fashion: Data) -> None:
    """A test image among the training images would be knowledge that no method can remove."""
    digests = {hashlib.sha256(image.numpy().tobytes()).digest() for image in fashion.inputs}
    assert len(digests) == len(fashion)


def official() -> Path:
    folder = Path(os.environ.get("EXPUNGE_FASHION_MNIST") or DEBIAN)
    if not (folder / f"{FILES[0]}-ubyte.gz").is_file():
        reason = "the official files are not here: apt-get install dataset-fashion-mnist"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return folder


def test_the_embedded_images_are_the_first_official_ones(fashion: Data) -> None:
    images, labels, test_images, test_labels = (read_idx(official() / f"{name}-ubyte.gz") for name in FILES)
    assert images.shape == (60_000, 28, 28) and test_images.shape == (10_000, 28, 28)
    for ids, pixels, classes in (
        (fashion.train, images[:10_000], labels[:10_000]),
        (fashion.test, test_images[:2_000], test_labels[:2_000]),
    ):
        # A byte over 255 in single precision, times 255, is within half a unit of the byte.
        assert np.array_equal((fashion.inputs[ids, 0] * 255).round().numpy().astype(np.uint8), pixels)
        assert np.array_equal(fashion.targets[ids].numpy(), classes)


def test_the_full_set_is_read_from_the_official_files() -> None:
    data = FashionMNIST(subset="full", folder=str(official()), train=300, test=50)()
    embedded = FashionMNIST(train=300, test=50)()
    assert torch.equal(data.inputs, embedded.inputs) and torch.equal(data.targets, embedded.targets)
    assert data.cscore is None


def test_without_the_official_files_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPUNGE_FASHION_MNIST", raising=False)
    with pytest.raises(MissingError, match="apt-get install dataset-fashion-mnist") as caught:
        FashionMNIST(subset="full", folder=str(tmp_path))()
    assert caught.value.exit_code == 3 and str(tmp_path) in str(caught.value)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(MissingError, match="nowhere"):
        FashionMNIST(subset="full")()
    monkeypatch.setenv("EXPUNGE_FASHION_MNIST", str(tmp_path / "elsewhere"))
    with pytest.raises(MissingError, match="elsewhere"):
        FashionMNIST(subset="full")()


def test_a_part_of_the_images_is_the_first_ones(fashion: Data) -> None:
    part = FashionMNIST(train=30, test=7)()
    assert len(part) == 37 and torch.equal(part.inputs[:30], fashion.inputs[:30])
    assert torch.equal(part.inputs[30:], fashion.inputs[10_000:10_007])
    assert part.cscore is not None and torch.equal(part.cscore[:30], fashion.cscore[:30])
    assert part.cscore[30:].isnan().all()
    with pytest.raises(SpecError, match=r"data\.train: found 10001 images; allowed: 1 to 10000"):
        FashionMNIST(train=10_001)()


def test_the_shipped_cscores_come_from_enough_nets(fashion: Data) -> None:
    with np.load(CSCORES) as counts:
        right, held_out = counts["right"].astype(int), counts["held_out"].astype(int)
    assert right.shape == held_out.shape == (10_000,) and (right <= held_out).all() and held_out.min() >= 1
    # Each net holds out 3,000 of 10,000: the mean count is 0.3 times the number of nets, exactly.
    nets = held_out.mean() / 0.3
    assert nets == pytest.approx(round(nets), abs=1e-9) and nets >= 50
    # Independent draws: the variance over examples is binomial; 10,000 of them give it within 1.4 %, five times that.
    assert held_out.var() == pytest.approx(nets * 0.3 * 0.7, rel=0.07)
    score = right / held_out
    assert np.array_equal(fashion.cscore[:10_000].numpy(), score)
    # The mean score is the accuracy of such nets on unseen images.
    assert 0.8 < score.mean() < 0.92
    assert (score < 0.1).sum() >= 200, "the default task forgets 200 examples that hardly a net gets right unseen"


# --- IDX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x02ab", "not an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", "truncated"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", "truncated"),
        (b"\0\0\x08\x03\0\0\0\x01", "truncated"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(content))
    with pytest.raises(SpecError, match=said):
        read_idx(tmp_path / "f.gz")


def test_an_idx_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    for content in (b"plain", gzip.compress(b"\0\0\x08\x01\0\0\0\x01a")[:-6]):
        (tmp_path / "f.gz").write_bytes(content)
        with pytest.raises(SpecError, match="not a readable gzip file"):
            read_idx(tmp_path / "f.gz")


def test_an_idx_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef"))
    assert read_idx(tmp_path / "f.gz").tolist() == [list(b"abc"), list(b"def")]


# --- Digits and Python's texts ---------------------------------------------------------------------------------------


def test_digits() -> None:
    data = Digits()()
    assert data.inputs.shape == (1797, 1, 8, 8) and (len(data.train), len(data.test)) == (1200, 597)
    assert data.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (float(data.inputs.min()), float(data.inputs.max())) == (0.0, 1.0)
    few = Digits(train=100, test=50)()
    assert len(few) == 150 and torch.equal(few.inputs, data.inputs[:150])
    with pytest.raises(SpecError, match="1 to 1796"):
        Digits(train=1797)()


def test_python_docs_are_windows_of_bytes_with_the_next_byte_as_target() -> None:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    data = PythonDocs(train=5, test=3, context=20)()
    assert data.inputs.shape == data.targets.shape == (8, 20) and data.has_tokens and len(data.labels) == 256
    for i in range(5):
        window = text[21 * i : 21 * (i + 1)]
        assert bytes(data.inputs[i].tolist()) == window[:-1] and bytes(data.targets[i].tolist()) == window[1:]
    there = len(text) // 21
    for i in range(3):
        start = 21 * (there - 3 + i)
        assert bytes(data.inputs[5 + i].tolist()) == text[start : start + 20]


def test_python_docs_can_be_used_up_but_not_exceeded() -> None:
    with pytest.raises(SpecError, match=r"allowed: (\d+) windows in all") as caught:
        PythonDocs(train=10**6)()
    there = int(caught.value.allowed.split()[0])
    data = PythonDocs(train=there - 200)()
    assert len(data) == there and torch.equal(data.train, torch.arange(there - 200))
    with pytest.raises(SpecError):
        PythonDocs(train=there - 199)()


# --- Your own arrays -------------------------------------------------------------------------------------------------


def arrays(**changes: Any) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    return {"x": x[:6], "y": np.arange(6) % 3, "tx": x[6:], "ty": np.arange(3), **changes}


def save(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "mine.npz"
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return str(path)


def test_arrays_are_read(tmp_path: Path) -> None:
    content = arrays(groups=np.array([0, 0, 1, 2, 3, 4, 5, 6, 7]))
    data = Arrays(save(tmp_path, content))()
    assert (data.train.tolist(), data.test.tolist()) == (list(range(6)), [6, 7, 8])
    assert data.labels == ("0", "1", "2") and data.has_classes
    assert np.array_equal(data.inputs.numpy(), np.concatenate([content["x"], content["tx"]]))
    assert data.group_of(torch.tensor([1, 2])).tolist() == [0, 1]
    named = Arrays(save(tmp_path, content), labels=["cat", "dog", "eel", "fox"])()
    assert named.labels == ("cat", "dog", "eel", "fox")


def test_bytes_become_shares_and_doubles_single(tmp_path: Path) -> None:
    images = np.full((9, 1, 8, 8), 255, np.uint8)
    data = Arrays(save(tmp_path, arrays(x=images[:6], tx=images[6:])))()
    assert data.inputs.dtype == torch.float32 and float(data.inputs.max()) == 1.0
    double = Arrays(save(tmp_path, arrays(x=np.ones((6, 4)), tx=np.ones((3, 4)))))()
    assert double.inputs.dtype == torch.float32


def test_whole_numbers_with_a_target_each_are_text(tmp_path: Path) -> None:
    tokens = np.arange(36).reshape(9, 4) % 7
    targets = np.roll(tokens, -1, axis=1)
    targets[:, -1] = IGNORE
    content = {"x": tokens[:6], "y": targets[:6], "tx": tokens[6:], "ty": targets[6:]}
    data = Arrays(save(tmp_path, content))()
    assert data.has_tokens and len(data.labels) == 7
    assert data.inputs.dtype == data.targets.dtype == torch.int64


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a pixel that is no number": (
        {"x": np.where(np.arange(24).reshape(6, 4) == 9, np.nan, 1.0)},
        r"1 inputs are not finite, the first has id 2",
    ),
    "an infinite pixel": ({"tx": np.full((3, 4), np.inf)}, r"3 inputs are not finite, the first has id 6"),
    "a single column that is no number": (
        {"x": np.array([1, 2, np.nan, 4, 5, 6.0]), "tx": np.ones(3)},
        r"1 inputs are not finite, the first has id 2",
    ),
    "a negative label": ({"y": np.array([0, 1, 2, 0, -1, 2])}, r"label -1 \(example 4\).*allowed: 0 to 2"),
    "labels in floating point": ({"y": np.arange(6.0), "ty": np.arange(3.0)}, "are ambiguous"),
    "labels that are words": ({"y": np.array(list("abcabc")), "ty": np.array(list("abc"))}, "allowed: numbers"),
    "a label short": ({"y": np.arange(5) % 3}, "9 inputs but 8 targets"),
    "a column of labels": ({"y": np.zeros((6, 1), int), "ty": np.zeros((3, 1), int)}, "are ambiguous"),
    "other images for test": ({"tx": np.zeros((3, 5), np.float32)}, r"x has shape \[6, 4\] and tx has shape \[3, 5\]"),
    "groups that are too few": ({"groups": np.arange(8)}, r"data\.groups: found shape \[8\]; allowed: \[9\]"),
    "groups that are fractions": ({"groups": np.arange(9) / 2}, "groups"),
    "no x": ({"x": None}, "lacks the array 'x'"),
    "no ty": ({"ty": None}, "lacks the array 'ty'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused(tmp_path: Path, name: str) -> None:
    changes, said = BAD[name]
    with pytest.raises(SpecError, match=said) as caught:
        Arrays(save(tmp_path, arrays(**changes)))().judged_by(None)
    assert caught.value.exit_code == 2 and caught.value.where.startswith(("data", "objective"))


def test_a_label_outside_the_named_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"label 2 \(example 2\) is outside the classes; allowed: 0 to 1"):
        Arrays(save(tmp_path, arrays()), labels=["cat", "dog"])()


def test_an_empty_set_is_refused_at_the_latest_by_the_problem(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError):
        data = Arrays(save(tmp_path, arrays(tx=np.zeros((0, 4), np.float32), ty=np.zeros(0, int))))()
        Problem(data, data.train[:1], data.train[1:], data.test)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was run",))


def test_a_pickle_inside_is_refused_and_never_run(tmp_path: Path) -> None:
    bombs = np.empty(6, dtype=object)
    bombs[:] = [Bomb()] * 6
    with pytest.raises(SpecError, match=r"cannot be read .* plain arrays"):
        Arrays(save(tmp_path, arrays(x=bombs)))()


def not_npz() -> dict[str, bytes]:
    whole, single, other = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(whole, **arrays())
    np.save(single, np.arange(3))
    with zipfile.ZipFile(other, "w") as packed:
        packed.writestr("x.txt", "not an array")
    damaged = bytearray(whole.getvalue())
    damaged[60:90] = bytes(30)
    return {
        "empty": b"",
        "text": b"x, y, tx, ty",
        "pickle": pickle.dumps(Bomb()),
        "truncated": whole.getvalue()[: len(whole.getvalue()) // 2],
        "damaged": bytes(damaged),
        "npy": single.getvalue(),
        "zip": other.getvalue(),
    }


@pytest.mark.parametrize("kind", not_npz())
def test_what_is_no_npz_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine.npz").write_bytes(not_npz()[kind])
    with pytest.raises(SpecError, match=r"mine\.npz"):
        Arrays(str(tmp_path / "mine.npz"))()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read .*none\.npz \(No such file"):
        Arrays(str(tmp_path / "none.npz"))()
    with pytest.raises(SpecError, match="is a folder; allowed: a file"):
        Arrays(str(tmp_path))()


# --- The container ---------------------------------------------------------------------------------------------------


def data(n: int = 6, **changes: Any) -> Data:
    fields: dict[str, Any] = {
        "inputs": torch.zeros(n, 2),
        "targets": torch.arange(n) % 2,
        "train": torch.arange(n - 2),
        "test": torch.arange(n - 2, n),
        "labels": ("a", "b"),
    }
    return Data(**{**fields, **changes})


def test_a_large_finite_sum_is_no_error() -> None:
    """The quick check adds everything up, which may overflow though no number is infinite."""
    assert len(data(inputs=torch.full((6, 2), 3e38))) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": torch.tensor([0, 1, 1])}, "id 1 occurs 2 times"),
        ({"train": torch.tensor([0, 6])}, "id 6 is out of range; allowed: 0 to 5"),
        ({"test": torch.tensor([-1])}, "id -1 is out of range"),
        ({"train": torch.tensor([0.0])}, "allowed: a list of whole numbers"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, "6 inputs but 5 targets"),
        ({"targets": torch.tensor([0, 1, 0, 1, 0, 2])}, r"label 2 \(example 5\)"),
        ({"targets": torch.zeros(6, 2, dtype=torch.int64)}, "are ambiguous"),
        ({"targets": torch.zeros(6, 3, dtype=torch.int64), "objective": LanguageModelling()}, "one target per token"),
        ({"inputs": torch.tensor([[0.0, math.nan]] * 6)}, "6 inputs are not finite"),
    ],
)
def test_bad_data_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        data(**changes).judged_by(None)


def test_relabelling_changes_nothing_in_place() -> None:
    before = data(cscore=torch.ones(6, dtype=torch.float64))
    after = before.relabelled(torch.tensor([0, 3]), torch.tensor([1, 0]))
    assert after.targets.tolist() == [1, 1, 0, 0, 0, 1] and before.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert after.cscore is None and before.cscore is not None


def test_a_batch_holds_the_examples_asked_for_in_that_order() -> None:
    pool = data(inputs=torch.arange(12.0).reshape(6, 2), groups=torch.tensor([4, 4, 2, 3, 5, 5]))
    batch = pool.batch(torch.tensor([3, 0]))
    assert batch.inputs.tolist() == [[6, 7], [0, 1]] and batch.targets.tolist() == [1, 0] and batch.size == 2
    assert pool[2].ids.tolist() == [2] and pool[2].inputs.tolist() == [[4, 5]]
    assert pool.group_of(torch.tensor([5, 0])).tolist() == [5, 4] and data().group_of(torch.tensor([5])).tolist() == [5]


# --- Texts -----------------------------------------------------------------------------------------------------------


def test_a_text_that_decides_nothing_is_refused() -> None:
    """Nothing in it can be wrong, so that every model would know it by heart."""
    tokens, targets = torch.zeros(5, 3, dtype=torch.int64), torch.full((5, 3), IGNORE)
    targets[[0, 2, 4], 1] = 1
    with pytest.raises(SpecError, match="2 examples have no decision, the first has id 1"):
        Data(tokens, targets, torch.arange(4), torch.arange(4, 5), ("a", "b"))
    targets[[1, 3], 2] = 0
    assert len(Data(tokens, targets, torch.arange(4), torch.arange(4, 5), ("a", "b"))) == 5
