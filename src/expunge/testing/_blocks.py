"""The contract of a block: the model keeps shapes, names and weights; the block trains and is stored with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.blocks import inserted, put
from expunge.core import checkpoint
from expunge.core.contracts import Block
from expunge.core.example_ids import example_ids
from expunge.core.seeding import forked
from expunge.testing._error import ContractError, Fail, failing
from expunge.testing._rules import check_settings, randomness, reasons
from expunge.testing._state import difference

HIDDEN = 8


def check_block(block: Block) -> None:
    """Check a block against its contract.

    The block is put behind a hidden layer of a perceptron, of a convolutional net and of a net for sequences, as far as
    it fits. The output keeps its shape and dtype and, if the block `preserves`, its values. The same seed gives the
    same weights, drawn from torch's global generator only. The model's own weights keep names and values, unless the
    block `replaces` modules. Gradients reach the input and every trainable weight of the block. A copy is independent
    of its source. Weights can be stored and restored.

    Args:
        block: The block.

    Raises:
        ContractError: The first broken contract.
    """
    check_settings(block)
    refusals, tried = [], list(_models())
    for name, model, path, inputs in tried:
        try:
            _check_on(block, failing(block, name), model, path, inputs)
        except SpecError as error:
            refusals.append(error)
    if len(refusals) == len(tried):
        raise ContractError(block, "some model fits", str(refusals[0]), "refuse only models that cannot have the block")


def _models() -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Name, model, path of a hidden layer (which can also be widened), and inputs of four examples."""
    generator = torch.Generator().manual_seed(0)
    with forked(0):
        yield (
            "vectors",
            nn.Sequential(nn.Linear(5, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 3)),
            "0",
            torch.randn(4, 5, generator=generator),
        )
        images = [nn.Conv2d(1, HIDDEN, 3), nn.GroupNorm(2, HIDDEN), nn.Tanh(), nn.Flatten(), nn.Linear(HIDDEN * 16, 3)]
        yield "images", nn.Sequential(*images), "0", torch.randn(4, 1, 6, 6, generator=generator)
        sequences = nn.Sequential(nn.Linear(5, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 3))
        yield "sequences", sequences, "0", torch.randn(4, 7, 5, generator=generator)


def _check_on(block: Block, fail: Fail, plain: nn.Module, path: str, inputs: Tensor) -> None:
    def build(seed: int) -> nn.Module:
        with randomness(seed, fail, torch_too=False):
            return put(copy.deepcopy(plain), block, path)

    model, again = build(1), build(1)
    if difference(model, again):
        raise fail("the seed decides the weights", difference(model, again), "draw from torch's global generator")
    _check_names(plain, model, block, fail)
    _check_outputs(plain, model, inputs, block, fail)
    _check_gradients(model, inputs, fail)
    copied = copy.deepcopy(model).eval()
    expected = _run(copied, inputs, fail)
    _spoil(model)
    if not torch.equal(_run(copied, inputs, fail), expected):
        raise fail("copies are independent", "a deep copy changes with its source", "keep tensors in modules")
    stored = checkpoint.restore(build(2), checkpoint.dump(copied), "model").eval()
    if difference(copied, stored) or not torch.equal(_run(stored, inputs, fail), expected):
        raise fail("weights can be stored", f"{difference(copied, stored) or 'outputs'} changed", "register tensors")


def _run(model: nn.Module, inputs: Tensor, fail: Fail) -> Tensor:
    with reasons(fail, "let the block take and return a tensor"), example_ids(torch.arange(len(inputs))):
        outputs: Tensor = model(inputs)
    return outputs


def _check_names(plain: nn.Module, model: nn.Module, block: Block, fail: Fail) -> None:
    """A block that changes the model itself may change shapes, but names only if it replaces modules."""
    if block.replaces:
        return
    before, after = plain.state_dict(), model.state_dict()
    lost = [name for name in before if name not in after]
    if lost:
        raise fail("names of weights stay", f"{lost[0]!r} is missing", "return a module instead of replacing one")
    same_shape = [name for name in before if after[name].shape == before[name].shape]
    changed = [name for name in same_shape if not torch.equal(after[name], before[name])]
    if changed and not block.preserves:
        raise fail("weights of the model stay", f"{changed[0]!r} changed", "put new weights into the returned module")


def _check_outputs(plain: nn.Module, model: nn.Module, inputs: Tensor, block: Block, fail: Fail) -> None:
    def same_kind(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if (output.shape, output.dtype) != (given[0].shape, given[0].dtype):
            finding = f"{list(given[0].shape)} {given[0].dtype} becomes {list(output.shape)} {output.dtype}"
            raise fail("the output keeps its shape", finding, "return a tensor like the input")

    model = copy.deepcopy(model)
    for place in inserted(model):
        place.module.register_forward_hook(same_kind)
    for dtype in (torch.float32, torch.float64):
        before = copy.deepcopy(plain).to(dtype).eval()(inputs.to(dtype)).detach()
        for training in (False, True):
            after = _run(copy.deepcopy(model).to(dtype).train(training), inputs.to(dtype), fail)
            if not after.isfinite().all():
                raise fail("outputs are finite", "they are not", "check divisions and logarithms")
    if block.preserves and not torch.allclose(after, before, rtol=1e-9, atol=1e-9):
        raise fail("preserves", "the outputs change", "set `preserves` only if the outputs cannot change")


def _check_gradients(model: nn.Module, inputs: Tensor, fail: Fail) -> None:
    own = copy.deepcopy(model).train()
    given = inputs.clone().requires_grad_()
    torch.autograd.backward(_run(own, given, fail).square().sum())
    idle = [name for name, p in own.named_parameters() if p.requires_grad and p.grad is None]
    if given.grad is None or not given.grad.abs().sum() > 0 or idle:
        finding = f"{idle[0]!r} gets none" if idle else "the input gets none"
        raise fail("gradients flow", finding, "use differentiable operations only, or freeze weights that do not train")


def _spoil(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(1)
