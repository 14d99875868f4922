"""BalancedSubnet against its steps written out, and masks against counting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from _toy import EXACT, classes, gpt, job, knowing, net, tokens, vector
from torch import Tensor, nn

from expunge import blocks
from expunge.base.errors import MissingError, SpecError
from expunge.blocks.mask import Mask, UnitMask, lowest_off, masked_weights, straight_through
from expunge.methods.balanced_subnet import BalancedSubnet
from expunge.train.evaluation import known_share


@pytest.mark.parametrize(("share", "off"), [(0.0, 0), (0.09, 0), (0.1, 1), (0.35, 3), (1.0, 10)])
def test_the_lowest_are_off(share: float, off: int) -> None:
    values = torch.tensor([5.0, 1, 9, 1, 7, 3, 8, 2, 6, 4]).view(2, 5)
    mask = lowest_off(values, share).flatten()
    first = sorted(range(10), key=lambda at: (float(values.flatten()[at]), at))[:off]
    assert [at for at in range(10) if mask[at] == 0] == sorted(first)


def test_the_gradient_goes_straight_through_to_absolute_scores() -> None:
    scores = torch.tensor([-3.0, 0.5, 2.0, -0.1], requires_grad=True)
    mask = straight_through(scores, 0.5)
    assert mask.tolist() == [1, 0, 1, 0]
    (gradient,) = torch.autograd.grad((mask * torch.tensor([1.0, 2, 3, 4])).sum(), scores)
    # Of those that are off, too: otherwise no weight would ever come back.
    assert gradient.tolist() == [-1, 2, 3, -4]


def test_weights_are_masked_inside_and_baked_afterwards() -> None:
    model, before = net(), net()
    layers = {"0": model[0], "2": model[2]}
    with masked_weights(layers, 0.25, torch.Generator().manual_seed(0)) as scores:
        assert all(
            float(score.detach().abs().max()) <= bound for score, bound in zip(scores, (5**-0.5, 7**-0.5), strict=True)
        )
        inside = {path: layer.weight.detach().clone() for path, layer in layers.items()}
    for path, layer in layers.items():
        whole = before.get_submodule(path).weight
        off = lowest_off(scores[path != "0"].detach().abs(), 0.25) == 0
        assert int(off.sum()) == whole.numel() // 4
        assert torch.equal(layer.weight, torch.where(off, 0.0, whole)) and torch.equal(layer.weight, inside[path])
        assert type(layer) is nn.Linear and isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad
    assert list(model.state_dict()) == list(before.state_dict())


def by_hand(model: nn.Sequential, problem: Any, method: BalancedSubnet) -> Tensor:
    """Plain SGD with momentum on scores, with the derivative by the effective weight from autograd."""
    work, draws = job(problem, model), job(problem, model).generator("scores")
    weights = [model[0].weight.detach(), model[2].weight.detach()]
    scores = [(torch.rand(w.shape, generator=draws, dtype=torch.float64) * 2 - 1) * w.shape[1] ** -0.5 for w in weights]
    velocity = [torch.zeros_like(s) for s in scores]

    def masks() -> list[Tensor]:
        return [lowest_off(s.abs(), method.share) for s in scores]

    for batch in method._pool(work):
        effective = [(w * m).requires_grad_() for w, m in zip(weights, masks(), strict=True)]
        hidden = (batch.inputs @ effective[0].T + model[0].bias).tanh()
        logits = hidden @ effective[1].T + model[2].bias
        losses = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        factor = torch.tensor([-1.4 if int(i) in problem.forget.tolist() else 0.6 for i in batch.ids]).double()
        back = torch.autograd.grad((factor * losses).sum(), effective)
        for s, v, w, g in zip(scores, velocity, weights, back, strict=True):
            step = g * w * s.sign() + method.weight_decay * s
            v.mul_(0.9).add_(step)
            s.sub_(method.learning_rate * v)
    pairs = zip(weights, masks(), (model[0].bias, model[2].bias), strict=True)
    return torch.cat([part.detach().flatten() for w, m, b in pairs for part in (w * m, b)])


def test_the_method_is_its_steps_written_out() -> None:
    problem, model = classes(), net()
    method = BalancedSubnet(share=0.2, weight=0.7, epochs=4, batch_size=5, learning_rate=0.05)
    done = method(model, problem, None, 0)
    torch.testing.assert_close(vector(done.model), by_hand(model, problem, method), **EXACT)
    assert done.cost.gradients == 4 * 2 * len(problem.forget)


def test_a_weight_that_was_off_comes_back() -> None:
    """Otherwise the final mask would be a part of the first one's survivors."""
    problem, model = classes(), net()
    first, last = (
        BalancedSubnet(share=0.3, epochs=epochs, learning_rate=rate)(model, problem, None, 0).model
        for epochs, rate in ((1, 1e-9), (10, 0.1))
    )
    off = [vector(m) == 0 for m in (first, last)]
    assert int(off[0].sum()) == int(off[1].sum())
    assert (off[0] & ~off[1]).any()


def test_it_forgets_and_keeps() -> None:
    problem = classes()
    everything = replace(problem, forget=problem.train[:-1], retain=problem.train[-1:])
    model = knowing(net(), everything)
    done = BalancedSubnet(share=0.3, epochs=60)(model, problem, None, 0).model
    lost, kept = (
        known_share(model, problem, ids) - known_share(done, problem, ids) for ids in (problem.forget, problem.retain)
    )
    assert lost >= 0.5 and kept <= lost - 0.2
    weights = dict(model.named_parameters())
    assert all(((p == weights[n]) | (p == 0)).all() for n, p in done.named_parameters())


@pytest.mark.parametrize(
    ("inputs", "path", "heads", "dim", "units"),
    [
        ((4, 5), "0", None, -1, 8),
        ((4, 7, 5), "0", 2, -1, 2),
        ((4, 1, 6, 6), "0", None, 1, 8),
        ((4, 1, 6, 6), "0", 4, 1, 4),
    ],
)
def test_units_behind_a_module_are_off_together(inputs: Any, path: str, heads: Any, dim: int, units: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 8, 3) if len(inputs) == 4 else nn.Linear(5, 8)
    model, given = nn.Sequential(layer), torch.randn(*inputs)
    plain = layer(given)
    blocks.put(model, Mask(share=0.5, heads=heads), path)
    (mask,) = (m for m in model.modules() if isinstance(m, UnitMask))
    assert len(mask.scores) == units
    outputs = model(given).movedim(dim, -1).flatten(0, -2)
    off = (outputs == 0).all(0)
    assert int(off.sum()) == 4
    assert torch.equal(outputs[:, ~off], plain.movedim(dim, -1).flatten(0, -2)[:, ~off])
    groups = off.view(units, -1)
    assert (groups.all(1) | ~groups.any(1)).all()


def test_masks_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
    with pytest.raises(SpecError, match="3 heads do not divide 8"):
        blocks.put(model, Mask(heads=3), "0")
    with pytest.raises(SpecError, match="not known"):
        blocks.put(nn.Sequential(nn.Flatten()), Mask(), "0")
    with pytest.raises(MissingError, match="LayerNorm"):
        BalancedSubnet(layers=["**.norm1"])(gpt(), tokens(), None, 0)
