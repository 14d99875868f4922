"""Codebooks against the paper's loss in autograd, plain nearest neighbours, the package's algorithm, and the bound."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.base.errors import MissingError, SpecError
from expunge.blocks import put
from expunge.blocks._codes import k_means
from expunge.blocks.codebook import MOVED, ORPHAN, SUBSTITUTED, Codebook, CodebookLayer
from expunge.core import checkpoint
from expunge.core.data import Data
from expunge.core.norms import held_statistics, unlearning
from expunge.core.recompute import checkpointed, micro_batches
from expunge.numerics.communication import continuous_bound, discrete_bound, effective_dimension, lipschitz_term
from expunge.testing import check_block
from expunge.train.monitors import CodeUsageMonitor

KINDS = ("gradient", "ema", "fsq", "gumbel", "decoupled_st")
BOTH = pytest.mark.parametrize("shared", [True, False])
EVERY = pytest.mark.parametrize("kind", KINDS)


def vectors(n: int = 40, width: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(heads: int = 3, codes: int = 8, width: int = 12, **settings) -> CodebookLayer:
    torch.manual_seed(0)
    return CodebookLayer(width, heads, codes, **settings).double()


def started(heads: int = 3, **settings) -> CodebookLayer:
    made = layer(heads, **settings)
    made.train()(vectors())
    return made.eval()


def nearest(made: CodebookLayer, hidden: torch.Tensor) -> torch.Tensor:
    """As vector-quantize-pytorch describes it: split into heads, all distances, the smallest; one head at a time."""
    size = made.width // made.heads
    columns = []
    for head in range(made.heads):
        book = made.codebook[0 if made.books == 1 else head]
        columns.append(torch.cdist(hidden[:, head * size : (head + 1) * size], book).argmin(1))
    return torch.stack(columns, 1)


@EVERY
@BOTH
def test_every_kind_keeps_the_contract(kind, shared):
    check_block(Codebook(codes=4, heads=2, shared=shared, kind=kind))


@BOTH
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_indices_are_those_of_all_distances(heads, shared):
    made, hidden = started(heads, shared=shared), vectors(seed=1)
    index = nearest(made, hidden)
    assert torch.equal(made.indices(hidden), index)
    table = made.codebook.expand(heads, -1, -1)
    wanted = torch.cat([table[head][index[:, head]] for head in range(heads)], 1)
    assert torch.equal(made(hidden), wanted.detach())


@BOTH
@pytest.mark.parametrize(("weight", "commitment"), [(1.0, 0.25), (0.3, 2.0), (1.0, 0.0)])
def test_gradients_are_those_of_the_papers_loss(shared, weight, commitment):
    """Autograd of L_task + (1/G) [|sg(s) - e|^2 + beta |s - sg(e)|^2], a mean over vectors, with s + sg(e - s)."""
    made = started(shared=shared, weight=weight, commitment=commitment, revive=False).train()
    hidden, reader = vectors(seed=1).requires_grad_(), vectors(seed=2)
    (made(hidden) * reader).sum().backward()
    plain, book = hidden.detach().clone().requires_grad_(), made.codebook.detach().clone().requires_grad_()
    index = nearest(made, hidden.detach())
    segments = plain.view(-1, 3, 4)
    chosen = torch.stack([book[0 if shared else head][index[:, head]] for head in range(3)], 1)
    straight = segments + (chosen - segments).detach()
    taught = (segments.detach() - chosen).square().sum(-1) + commitment * (segments - chosen.detach()).square().sum(-1)
    ((straight.flatten(1) * reader).sum() + weight * taught.mean()).backward()
    assert torch.allclose(hidden.grad, plain.grad, atol=1e-12)
    assert torch.allclose(made.codebook.grad, book.grad, atol=1e-12)


def test_the_task_never_reaches_the_codebook():
    made, hidden = started().train(), vectors(seed=1).requires_grad_()
    gradients = []
    for scale in (0.0, 1.0, 1e6):
        made.codebook.grad = None
        (scale * made(hidden).square().sum()).backward()
        gradients.append(made.codebook.grad.clone())
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    assert gradients[0].abs().sum() > 0


def test_in_evaluation_the_layer_has_no_loss():
    made, hidden = started(), vectors(seed=1).requires_grad_()
    made(hidden).sum().backward()
    assert torch.equal(hidden.grad, torch.ones_like(hidden))
    assert made.codebook.grad is None or not made.codebook.grad.any()


def test_averages_follow_their_inputs():
    """Each pass: usage and sums of a code move by 1 % to those of the batch; their ratio is the next pass's code."""
    made, hidden = started(kind="ema", revive=False).train(), vectors()
    for _ in range(3):
        made(hidden)
        usage, sums, index = made.running_usage.clone(), made.running_sums.clone(), nearest(made, hidden).flatten()
        chosen = F.one_hot(index, 8).double()
        made(hidden)
        again = F.one_hot(nearest(made, hidden).flatten(), 8).double()
        assert torch.allclose(made.codebook[0], sums[0] / usage[0].unsqueeze(1))
        assert torch.allclose(made.running_usage[0], 0.99 * usage[0] + 0.01 * again.mean(0))
        assert torch.allclose(made.running_sums[0], 0.99 * sums[0] + 0.01 * again.T @ hidden.view(-1, 4) / 120)
        assert chosen.sum() == 120


def test_scalars_are_rounded_to_the_nearest_level():
    made, hidden = started(kind="fsq"), vectors(seed=1)
    assert made.levels == (4, 2)
    squeezed = made.squeeze(hidden.view(-1, 4)).tanh() * torch.tensor([2.0, 1.0]).double()
    rounded = torch.stack([(squeezed[:, 0] + 0.5).round() - 0.5, (squeezed[:, 1] + 0.5).round() - 0.5], 1)
    assert torch.allclose(made(hidden).view(-1, 4), made.spread(rounded).detach())


@pytest.mark.parametrize("kind", ["gumbel", "decoupled_st"])
def test_random_codes_have_the_law_of_their_temperature(kind):
    made, hidden = layer(1, 3, 2, kind=kind, temperature=2.0), vectors(1, 2)
    made.started.fill_(True)
    made.train()
    found = made(hidden.expand(4000, -1))
    p = F.softmax(-0.5 * torch.cdist(hidden, made.codebook[0]).square() / 2.0, -1)[0]
    for code in range(3):
        share = float((found == made.codebook[0, code]).all(1).double().mean())
        assert share == pytest.approx(p[code].item(), abs=0.04)
    made.zero_grad()
    made(hidden).sum().backward()
    assert made.codebook.grad.abs().sum() > 0


def test_codes_start_at_clusters_of_the_first_batch():
    centres = 5 * vectors(4, 3, seed=7)
    rows = (centres.repeat(50, 1) + 0.01 * vectors(200, 3))[None]
    torch.manual_seed(3)
    found = [k_means(rows, 8)[0] for _ in range(3)]
    assert all(float(torch.cdist(centres, codes).min(1).values.max()) < 0.05 for codes in found)


def test_a_dead_code_starts_again_at_an_input_and_a_deleted_one_does_not():
    made = started().train()
    with torch.no_grad():
        made.codebook[0, :2] = 1e3
    made.delete(torch.arange(8)[None] == 1, SUBSTITUTED)
    for _ in range(500):
        made(vectors())
    assert (
        not made.dead().any() and made.codebook[0, 0].abs().max().item() < 10 < made.codebook[0, 1].abs().max().item()
    )
    assert made.perplexity()[0] > 4
    lost = started(revive=False).train()
    with torch.no_grad():
        lost.codebook[0, :2] = 1e3
    lost.running_usage[0, :2] *= 0.05
    for _ in range(200):
        lost(vectors())
    assert lost.dead()[0].tolist() == [True, True] + [False] * 6 and "deleted=0" in repr(lost)


def test_the_monitor_reads_usage_and_dead_codes():
    made = nn.Sequential(started(revive=False))
    with torch.no_grad():
        made[0].running_usage[0] = torch.tensor([0.5, 0.5] + [0.0] * 6)
    usage = CodeUsageMonitor(every=2)
    for step in range(4):
        usage(step, made)
    assert usage.record == {"step": [0, 2], "perplexity 0": pytest.approx([2, 2]), "dead 0": [0.75, 0.75]}
    with pytest.raises(MissingError, match="no codebook"):
        usage(4, nn.Linear(2, 2))
    with pytest.raises(SpecError, match="every = 0"):
        CodeUsageMonitor(every=0)


@EVERY
@BOTH
@pytest.mark.parametrize("fate", [MOVED, SUBSTITUTED])
def test_a_deleted_code_is_never_emitted_again(kind, shared, fate):
    """Not at once, not after training on what chose it, not after a copy through a file."""
    made = started(kind=kind, shared=shared)
    before, chosen = made.vectors(), torch.zeros(made.books, 8, dtype=torch.bool)
    chosen[:, :3] = True
    hidden = vectors(200, seed=5)
    made.delete(chosen, fate, torch.full((made.books, 4), 0.125).double() if fate == SUBSTITUTED else None)
    if kind == "gradient":
        optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            (made.train()(hidden) - hidden).square().sum().backward()
            optimizer.step()
    again = checkpoint.restore(layer(kind=kind, shared=shared), checkpoint.dump(made), "model")
    for model in (made, copy.deepcopy(made), again):
        index = model.eval().indices(hidden)
        assert not torch.isin(index, torch.arange(3)).any() and bool((index == ORPHAN).any()) == (fate == SUBSTITUTED)
        for mode in (True, False):
            emitted = model.train(mode)(hidden).detach().view(-1, 3, 4)
            for head in range(3):
                rows = emitted[:, head]
                old = before[0 if shared else head, :3]
                assert torch.cdist(rows, old).min().item() > 1e-9
                if fate == SUBSTITUTED:
                    orphans = rows[index[:, head] == ORPHAN] if not mode else rows[:0]
                    assert torch.equal(orphans, torch.full_like(orphans, 0.125))
    if fate == MOVED and kind != "fsq":
        assert not made.codebook[chosen].any()


def test_with_the_null_policy_other_heads_say_what_they_said():
    made, hidden = started(shared=False), vectors(seed=5)
    before = made(hidden).view(-1, 3, 4)
    chosen = torch.zeros(3, 8, dtype=torch.bool)
    chosen[1, :4] = True
    made.delete(chosen, SUBSTITUTED)
    after, orphans = made(hidden).view(-1, 3, 4), made.indices(hidden)[:, 1] == ORPHAN
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]]) and orphans.any()
    assert not after[orphans, 1].any() and torch.equal(after[~orphans, 1], before[~orphans, 1])


@pytest.mark.parametrize("kind", ["gradient", "ema", "fsq"])
def test_micro_batches_and_recomputation_give_the_gradients_of_the_batch(kind):
    """Unless averages need the whole batch, which is said."""
    data = Data(vectors(24, 6).float(), torch.arange(24) % 3, torch.arange(20), torch.arange(20, 24), tuple("abc"))
    torch.manual_seed(0)
    plain = put(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), Codebook(codes=4, heads=2, kind=kind), "0")
    data.objective.loss(plain.train(), data.batch(data.train))
    models = [copy.deepcopy(plain) for _ in range(3)]
    checkpointed(models[2], "0")
    for model, count in zip(models, (1, 3, 1), strict=True):
        with micro_batches(count):
            if kind == "ema" and count > 1:
                with pytest.raises(SpecError, match="averages need the whole batch"):
                    data.objective.loss(model, data.batch(data.train))
                continue
            data.objective.loss(model, data.batch(data.train)).backward()
    wanted = [p.grad for p in models[0].parameters()]
    for model in models[1:] if kind != "ema" else models[2:]:
        for found, want in zip(model.parameters(), wanted, strict=True):
            assert torch.allclose(found.grad, want, atol=1e-6)


def test_batches_that_hold_statistics_move_nothing_but_what_has_a_gradient():
    made = started(kind="ema").train()
    state = copy.deepcopy(made.state_dict())
    with held_statistics(made):
        made(vectors(seed=9))
    assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict().items())
    with unlearning(torch.arange(3)):
        made(vectors(seed=9))
    assert not torch.equal(state["running_usage"], made.running_usage)


@pytest.mark.parametrize(
    ("make", "run", "finding"),
    [
        (lambda: CodebookLayer(10, 3), None, "3 heads do not divide a width of 10; allowed: 1, 2, 5, 10"),
        (lambda: put(nn.Sequential(nn.Linear(4, 6)), Codebook(heads=4), "0"), None, "do not divide the 6 channels behind '0'"),
        (lambda: Codebook(codes=0), None, "codes"),
        (lambda: CodebookLayer(4, kind="fsq", codes=6), None, "found 6; allowed: a power of two"),
        (lambda: CodebookLayer(4, codes=9), lambda made: made(torch.randn(8, 4)), "8 vectors for 9 codes"),
        (lambda: CodebookLayer(4), lambda made: made(torch.randn(8, 5)), r"its input is \[8, 5\]"),
        (lambda: CodebookLayer(4), lambda made: made(torch.ones(8, 4).long()), "int64"),
        (lambda: CodebookLayer(4, codes=5), lambda made: made.delete(torch.ones(1, 4).bool(), MOVED), r"shape \[1, 4\]"),
        (lambda: CodebookLayer(4, codes=5), lambda made: made.delete(torch.ones(1, 5).bool(), MOVED), "no code left"),
        (lambda: put(nn.Sequential(nn.Linear(4, 6, dtype=torch.complex64)), Codebook(), "0"), None, "complex"),
        (lambda: put(nn.Sequential(nn.ReLU()), Codebook(), "0"), None, "channels behind '0' is not known"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, run, finding):
    with pytest.raises(SpecError, match=finding):
        made = make()
        run(made)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), (torch.randn(3, 5, 8),) * 3),
        (nn.LSTM(4, 8), (torch.randn(3, 5, 4),)),
        (nn.GRU(4, 4, bidirectional=True), (torch.randn(3, 5, 4),)),
        (nn.LSTMCell(4, 8), (torch.randn(9, 4),)),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (torch.randn(3, 5, 4),)),
        (nn.Conv2d(4, 8, 3), (torch.randn(3, 4, 5, 5),)),
        (nn.Embedding(4, 8), (torch.tensor([[0, 1, 2, 3] * 3]),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_goes_behind_whatever_communicates(module, inputs):
    """Attention, recurrent modules and cells, messages of a graph net (a perceptron), channels of a CNN, tokens."""
    model = put(nn.ModuleDict({"it": copy.deepcopy(module)}), Codebook(codes=4, heads=2), "it").train()
    for _ in range(2):
        output = model["it"](*inputs)
    first = output[0] if isinstance(output, tuple) else output
    plain = first if not isinstance(module, nn.Conv2d) else first.movedim(1, -1)
    assert len(plain.reshape(-1, 4).unique(dim=0)) <= 4
    first.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("heads", "codes", "n"), [(1, 4, 50), (2, 4, 200), (3, 3, 1000)])
def test_the_bound_holds_over_random_draws(heads, codes, n):
    """The largest deviation of a cell's frequency, over all cells; at most 5 % of the draws may exceed the bound."""
    generator, cells = torch.Generator().manual_seed(0), codes**heads
    exceeded, largest = 0, 0.0
    for _ in range(200):
        p = torch.distributions.Dirichlet(torch.full((cells,), 0.3)).sample()
        drawn = torch.multinomial(p, n, replacement=True, generator=generator)
        apart = float((torch.bincount(drawn, minlength=cells) / n - p).abs().max())
        exceeded, largest = exceeded + (apart > discrete_bound(n, heads, codes)), max(largest, apart)
    assert exceeded <= 10 and largest > 0.2 * discrete_bound(n, heads, codes)


def test_bounds_against_numbers_by_hand():
    assert discrete_bound(100, 2, 8) == pytest.approx(math.sqrt((2 * math.log(8) + math.log(40)) / 200))
    assert continuous_bound(100, 4) == pytest.approx(math.sqrt((4 * math.log(80) + math.log(40)) / 200))
    assert lipschitz_term(100, 2.0, 3.0, 0.5) == pytest.approx(0.3)
    assert effective_dimension(torch.eye(5).repeat(2, 1)) == pytest.approx(4)
    assert effective_dimension(torch.arange(5.0)[:, None] * torch.ones(3)) == pytest.approx(1)
    assert effective_dimension(torch.ones(4, 3)) == 0
    with pytest.raises(SpecError, match="delta 1"):
        discrete_bound(10, 1, 2, delta=1)
