"""Weights survive a file bit by bit; whatever is no such file is refused in a sentence, and never run."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_bytes
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.checkpoint import dump, load, restore
from expunge.core.data import Data
from expunge.core.modules import state_digest
from expunge.models.cnn import CNN
from expunge.models.gpt import GPT


def net(width: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def gpt(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    tokens, ids = torch.zeros(2, 4, dtype=torch.int64), torch.arange(2)
    return GPT(width=8, layers=1, heads=2)(Data(tokens, tokens, ids[:1], ids[1:], tuple("abc")))


def test_every_tensor_survives_bit_by_bit() -> None:
    model, other = net(seed=0), net(seed=1)
    with torch.no_grad():
        model.train()(torch.randn(5, 4))
        # Values that a decimal or a narrower format would lose.
        model[0].weight[0, :3] = torch.tensor([1e-42, -0.0, 1 / 3])
    model.train()
    restore(other.train(), dump(model), "here")
    assert state_digest(other) == state_digest(model)
    assert int(other[1].num_batches_tracked) == 1
    assert other[0].weight.data_ptr() != model[0].weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_survive(dtype: torch.dtype) -> None:
    model, other = net(seed=0).to(dtype), net(seed=1).to(dtype)
    assert state_digest(restore(other, dump(model), "")) == state_digest(model)


def test_tied_weights_are_written_once_and_stay_tied() -> None:
    model, other = gpt(0), gpt(1)
    content = dump(model)
    assert len(content) < sum(p.numel() * 4 for p in model.parameters()) + 4096
    restore(other, content, "")
    assert other.head.weight is other.tokens.weight and state_digest(other) == state_digest(model)
    # As well in a file that has both names, as other programs write.
    both = save_bytes({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    third = restore(gpt(2), both, "")
    assert third.head.weight is third.tokens.weight and state_digest(third) == state_digest(model)


def test_the_same_weights_give_the_same_bytes() -> None:
    assert dump(net()) == dump(net())


def test_transposed_and_sliced_tensors_survive() -> None:
    model = nn.Linear(3, 3, bias=False)
    model.weight.data = torch.arange(18.0).reshape(3, 6).T[::2]
    found = restore(nn.Linear(3, 3, bias=False), dump(model), "")
    assert torch.equal(found.weight, model.weight)


# --- What is refused -------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was run",))


def pickles() -> dict[str, bytes]:
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"weight": Bomb()}, zipped)
    torch.save({"weight": Bomb()}, legacy, _use_new_zipfile_serialization=False)
    bare = {f"protocol {p}": pickle.dumps(Bomb(), protocol=p) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)}
    return {"zip": zipped.getvalue(), "legacy": legacy.getvalue(), **bare}


@pytest.mark.parametrize("kind", pickles())
def test_a_pickle_is_named_and_never_run(kind: str) -> None:
    with pytest.raises(SpecError, match="this pickle is damaged or holds more than tensors") as caught:
        restore(net(), pickles()[kind], "weights.pt")
    assert "weights.pt" in str(caught.value) and "torch.save(model.state_dict(), path)" in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 1])
def test_the_oldest_pickles_are_no_safetensors_either(protocol: int) -> None:
    with pytest.raises(SpecError, match="not a complete safetensors file"):
        restore(net(), pickle.dumps(Bomb(), protocol=protocol), "weights.pt")


def test_a_header_as_long_as_a_pickle_s_first_bytes_is_no_pickle() -> None:
    """A safetensors file begins with its header's length: 0x280 bytes are b"\\x80\\x02", which is how pickles begin."""
    lengths = set()
    for layers in range(1, 24):
        for name in ("a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"):
            model = nn.ModuleDict({f"{name}{i}": nn.Linear(1, 1, bias=False) for i in range(layers)})
            content = dump(model)
            lengths.add(int.from_bytes(content[:8], "little"))
            restore(model, content, "")
    assert lengths & {0x0280, 0x0380, 0x0480, 0x0580}


@pytest.mark.parametrize("keep", [0, 4, 8, 50, 200, -1])
def test_a_truncated_file_is_refused(keep: int) -> None:
    with pytest.raises(SpecError, match="not a complete safetensors file"):
        restore(net(), dump(net())[:keep], "here")


def test_a_refused_file_leaves_the_model_as_it_was() -> None:
    model = net(seed=1)
    before = state_digest(model)
    for content in (dump(net())[:-1], dump(net(width=5)), pickles()["zip"]):
        with pytest.raises(SpecError):
            restore(model, content, "here")
    assert state_digest(model) == before


def test_another_architecture_is_refused_with_the_first_misfit() -> None:
    with pytest.raises(SpecError, match=r"0\.weight has shape \[5, 4\], the model's has \[3, 4\] and 6 more misfits"):
        restore(net(width=3), dump(net(width=5)), "model.weights")
    with pytest.raises(SpecError, match=r"3\.bias is missing"):
        content = {name: tensor for name, tensor in net().state_dict().items() if name != "3.bias"}
        restore(net(), save_bytes(content), "model.weights")
    with pytest.raises(SpecError, match="extra is not part of the model"):
        restore(net(), save_bytes({**net().state_dict(), "extra": torch.zeros(1)}), "model.weights")


def test_a_model_of_another_family_is_refused() -> None:
    images = Data(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1]), ("a", "b"))
    with pytest.raises(SpecError, match="weights of another architecture"):
        restore(net(), dump(CNN(width=4)(images)), "model.weights")


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    model, other = net(seed=0), net(seed=1)
    (tmp_path / "w.safetensors").write_bytes(dump(model))
    assert state_digest(load(other, tmp_path / "w.safetensors")) == state_digest(model)
    with pytest.raises(SpecError, match=r"cannot read .*none\.safetensors \(No such file or directory\)"):
        load(other, tmp_path / "none.safetensors")
    with pytest.raises(SpecError, match="is a folder"):
        load(other, tmp_path)
    (tmp_path / "short").write_bytes(dump(model)[:99])
    with pytest.raises(SpecError, match="short: not a complete"):
        load(other, tmp_path / "short")


# --- Files of torch.save ---------------------------------------------------------------------------------------------


def saved(content: object, **settings: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in net(seed=3).state_dict().items()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: saved(net(seed=3).state_dict()), ""),
        (lambda: saved(net(seed=3).state_dict(), _use_new_zipfile_serialization=False), ""),
        (lambda: saved({"epoch": 3, "model_state_dict": net(seed=3).state_dict(), "loss": 0.5}), ""),
        (lambda: saved({"state_dict": prefixed("model.")}), "the prefix 'model.' is removed"),
        (lambda: saved(nn.ModuleDict({"module": net(seed=3)}).state_dict()), "the prefix 'module.' is removed"),
        (lambda: saved(prefixed("module._orig_mod.")), "the prefix 'module._orig_mod.' is removed"),
        (lambda: save_bytes(prefixed("_orig_mod.")), "the prefix '_orig_mod.' is removed"),
        (lambda: saved(net(seed=3).double().state_dict()), "stored as float64 and used as float32"),
        (lambda: dump(net(seed=3).half()), "stored as float16 and used as float32"),
        (lambda: saved(net(seed=3).bfloat16().state_dict()), "stored as bfloat16 and used as float32"),
    ],
    ids=[
        "state dict", "old format", "training checkpoint", "Lightning", "parallel", "parallel and compiled", "compiled",
        "double", "half", "bfloat16",
    ],
)  # fmt: skip
def test_state_dicts_are_read_and_what_is_changed_is_said(
    content: Callable[[], bytes], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content())
    for _ in range(2):
        loaded = load(net(), path, "model.weights")
    for ours, theirs in zip(loaded.parameters(), net(seed=3).parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-2)
    error = capsys.readouterr().err
    assert said in error and error.count(str(path)) == bool(said), "it is said once, and only where there is something"


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (lambda: saved(net()), "holds more than tensors"),
        (lambda: saved([torch.zeros(2)]), "holds a list, and no state dict"),
        (lambda: saved({"epoch": 3}), "holds a dict, and no state dict"),
        (lambda: saved(torch.zeros(2)), "holds a Tensor, and no state dict"),
        (lambda: saved(net(width=5).state_dict()), "weights of another architecture"),
        (lambda: saved(net().state_dict())[:-40], "damaged or holds more"),
        (lambda: saved(prefixed("module.") | {"extra": torch.zeros(1)}), "weights of another architecture"),
    ],
    ids=["module", "list", "no tensors", "one tensor", "other width", "truncated", "half a prefix"],
)
def test_other_files_of_torch_save_are_refused(content: Callable[[], bytes], finding: str) -> None:
    with pytest.raises(SpecError, match=finding):
        restore(net(), content(), "model.weights")
