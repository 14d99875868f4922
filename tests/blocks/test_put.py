"""Where a block is put, what it may not change there, and what is refused."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from expunge import blocks, testing
from expunge.base import registry
from expunge.base.errors import SpecError
from expunge.base.spec import parse
from expunge.blocks._architecture import Placed
from expunge.blocks._put import inserted, matching
from expunge.blocks.tied_dropout import TiedDropout
from expunge.core import checkpoint
from expunge.core.chain import joints
from expunge.core.contracts import Block
from expunge.core.data import Data
from expunge.core.example_ids import example_ids
from expunge.models.mlp import MLP
from helpers import cli, finished, tiny, toml


@dataclass(frozen=True)
class Scale(Block):
    """A block of somebody's own, in one file."""

    by: float = 2.0
    """Initial factor."""

    def __call__(self, model: nn.Module, path: str) -> nn.Module:
        return _Scale(self.by)


class _Scale(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.by


class Residual(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = {
        "first": nn.Linear(4, 4),
        "act": nn.ReLU(),
        "res": Residual(nn.Linear(4, 4), nn.ReLU()),
        "last": nn.Linear(4, 3),
    }
    return nn.Sequential(OrderedDict(layers))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("act", ["act"]),
        ("*", ["first", "act", "res", "last"]),
        ("res.*", ["res.0", "res.1"]),
        ("**.1", ["res.1"]),
        ("**.?", ["res.0", "res.1"]),
        ("??st", ["last"]),
        ("*st", ["first", "last"]),
        ("res.**", ["res", "res.0", "res.1"]),
    ],
)
def test_patterns_match_steps_of_paths(pattern: str, paths: list[str]) -> None:
    assert matching(net(), [pattern], "block") == paths


def test_a_block_works_on_what_the_module_returns_and_renames_nothing() -> None:
    plain = net()
    hidden = torch.relu(plain.first(X))
    residual = 2 * (hidden + torch.relu(plain.res[0](hidden)))
    expected = plain.last(residual)
    model = blocks.put(copy.deepcopy(plain), Scale(), "res")
    assert torch.equal(model(X), expected)
    assert [name for name in model.state_dict() if "expunge_block" not in name] == list(plain.state_dict())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        inserted(copied)[0].module.by.fill_(3)
    assert torch.equal(model(X), expected) and not torch.equal(copied(X), expected)
    assert inserted(copied)[0] in set(copied.modules()) and not inserted(model.eval())[0].training


def test_two_blocks_run_in_the_order_in_which_they_were_put() -> None:
    class Add(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + 1

    model = blocks.put(blocks.put(net(), Scale(), "act"), lambda _, __: Add(), ["act"])
    plain = net()
    assert torch.equal(model(X), plain.last(plain.res(2 * torch.relu(plain.first(X)) + 1)))


def test_the_first_part_of_a_tuple_is_taken_and_other_outputs_are_refused() -> None:
    class Returns(nn.Module):
        def __init__(self, output: Any) -> None:
            super().__init__()
            self.output = output
            self.inner = nn.Identity()

        def forward(self, inputs: Tensor) -> Any:
            return (inputs, "state") if self.output is tuple else {"logits": inputs}

    model = blocks.put(nn.ModuleDict({"a": Returns(tuple), "b": Returns(dict)}), Scale(), "?")
    assert torch.equal(model["a"](X)[0], 2 * X) and model["a"](X)[1] == "state"
    with pytest.raises(SpecError, match=r"'b' returns dict.*inside it"):
        model["b"](X)


def test_a_path_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        SpecError, match=r"block.at: no module matches 'frist'; allowed: paths of modules, such as first"
    ):
        blocks.put(net(), Scale(), "frist")
    with pytest.raises(SpecError, match=r"'0' is a ModuleList, which is never called; name its members: 0\.\*"):
        blocks.put(nn.Sequential(nn.ModuleList([nn.ReLU()])), Scale(), "0")


def data() -> Data:
    return Data(X.repeat(3, 1), torch.arange(15) % 3, torch.arange(10), torch.arange(10, 15), tuple("abc"))


def test_a_block_that_never_runs_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare, self.used = nn.ReLU(), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.used(inputs)
            return logits

    architecture = blocks.with_blocks(lambda _: Around(), [Placed(Scale(), ("spare",), "scale")])
    with pytest.raises(SpecError, match=r"model.block\[0\].at: 'spare' never runs"):
        architecture(data())


def test_what_reads_chains_sees_that_there_is_a_block() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert len(joints(model)) == 1
    with pytest.raises(Exception, match="a block was put behind '1'"):
        joints(blocks.put(model, TiedDropout(), "1"))


def test_ids_reach_a_block_in_functions_of_the_weights_and_side_by_side() -> None:
    model = blocks.put(net(), TiedDropout(0.5, 0.5), "act").train()
    ids, weights = torch.arange(5), dict(model.named_parameters())
    with example_ids(ids):
        together = model(X)
        assert torch.equal(functional_call(model, weights, (X,)), together)

    def one(x: Tensor, example: Tensor) -> Tensor:
        with example_ids(example[None]):
            found: Tensor = functional_call(model, weights, (x[None],))
        return found[0]

    torch.testing.assert_close(vmap(one)(X, ids), together)


def test_a_block_of_another_package_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"scale": EntryPoint("scale", f"{__name__}:Scale", "expunge.blocks")}
    monkeypatch.setattr(registry, "_entry_points", lambda kind: points if kind == "block" else {})
    assert registry.names("block") == ["bilinear", "codebook", "mask", "scale", "tied_dropout", "widen"]
    block = registry.build("block", "scale", {"by": 3.0}, where="model.block[0]")
    assert block == Scale(3.0)
    testing.check_block(block)

    @dataclass(frozen=True)
    class Cuts(Scale):
        """Leaves channels out."""

        def __call__(self, model: nn.Module, path: str) -> nn.Module:
            class Cut(nn.Module):
                def forward(self, hidden: Tensor) -> Tensor:
                    return hidden.detach()

            return Cut()

    with pytest.raises(testing.ContractError, match="gradients flow"):
        testing.check_block(Cuts())


def test_weights_without_a_block_load_into_the_model_with_one() -> None:
    plain = MLP(widths=[8])(data())
    model = blocks.with_blocks(MLP(widths=[8]), [Placed(TiedDropout(), ("2",), "tied_dropout")])(data())
    checkpoint.restore(model, checkpoint.dump(plain), "model")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    with_weights = blocks.put(copy.deepcopy(plain), Scale(), "2")
    again = blocks.put(MLP(widths=[8])(data()), Scale(5.0), "2")
    checkpoint.restore(again, checkpoint.dump(with_weights), "model")
    assert torch.equal(again(data().inputs), with_weights(data().inputs))


def spec(**block: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "block": [block]},
        "forget": {"name": "x"},
    }


def test_a_spec_names_blocks_and_where_they_go() -> None:
    (entry,) = parse(spec(name="tied_dropout", at="2", fixed=0.25), Path()).block
    assert (entry.name, entry.at, dict(entry.settings)) == ("tied_dropout", ("2",), {"fixed": 0.25})
    assert parse(spec(name="tied_dropout", at=["2", "3"]), Path()).block[0].at == ("2", "3")
    for table, message in (
        ({"name": "tied_dropout"}, r"model.block\[0\]: 'at' is missing.*behind which modules"),
        ({"name": "tied_dropout", "at": 3}, r"model.block\[0\].at: found 3"),
        ({"name": "tied_dropout", "at": [3]}, r"model.block\[0\].at\[0\]: found 3"),
        ({"at": "2"}, r"model.block\[0\]: 'name' is missing"),
    ):
        with pytest.raises(SpecError, match=message):
            parse(spec(**table), Path())


OWN = '''
import torch
from torch import nn


def noisy(model, path, size=0.1):
    """Noise behind a layer, in training."""
    class Noisy(nn.Module):
        def forward(self, hidden):
            return hidden + size * torch.randn_like(hidden) if self.training else hidden
    return Noisy()
'''


def test_a_run_with_a_block_from_a_file_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "own_block.py").write_text(OWN)
    block = {"name": "own_block:noisy", "at": "2", "size": 0.2}
    table = tiny(name="noisy", seeds=[0], model={"name": "mlp", "widths": [8], "block": [block]})
    (tmp_path / "noisy.toml").write_text(toml(table))
    finished(cli("run", tmp_path / "noisy.toml", "--out", tmp_path / "runs", "--workers", "1", "--json"))
    refused = cli(
        "run", tmp_path / "noisy.toml", "--out", tmp_path / "runs", "--set", "model.block.own_block:noisy.at=nine"
    )
    assert refused.code == 2 and "model.block[0].at: no module matches" in refused.err
