"""Less memory for the same step: decided positions only, micro-batches of unequal texts, and recomputed layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.core.adapter import Adapter, adapted
from expunge.core.data import IGNORE, Data
from expunge.core.features import Features, FeatureSite
from expunge.core.modules import embedding_layer
from expunge.core.positions import decided_only
from expunge.core.problem import Problem
from expunge.core.recompute import checkpointed, micro_batches
from expunge.methods.npo import NPO, npo_loss
from expunge.train.training import Training

transformers = pytest.importorskip("transformers")

VOCABULARY, LONG = 19, 10
IDS = torch.arange(12)
FORGET, RETAIN, TEST = IDS[:4], IDS[4:10], IDS[10:]


def texts() -> Data:
    """Texts of two to ten tokens with padding on the right; the first two tokens of each are a prompt."""
    rows = torch.randint(VOCABULARY, (12, LONG + 1), generator=torch.Generator().manual_seed(0))
    targets = rows[:, 1:].clone()
    lengths = torch.tensor([10, 2, 5, 3, 9, 2, 4, 7, 10, 3, 6, 8])
    targets[torch.arange(LONG) >= lengths[:, None]] = IGNORE
    targets[:, :1] = IGNORE
    return Data(rows[:, :-1], targets, IDS[:10], TEST, tuple(map(str, range(VOCABULARY))))


PROBLEM = Problem(texts(), FORGET, RETAIN, TEST)


def llama(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    facts = {"vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": LONG}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "initializer_range": 0.3}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts | heads | changes)).double()


def gpt2(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    facts = {"vocab_size": VOCABULARY, "n_positions": LONG, "n_embd": 8, "n_layer": 2, "n_head": 2}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = transformers.GPT2Config(**facts | drops, bos_token_id=0, eos_token_id=0, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(config).double()


def gradients(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> tuple[Tensor, list[Tensor]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    value = loss(model)
    return value.detach(), list(torch.autograd.grad(value, parameters))


def npo(model: nn.Module) -> Tensor:
    return npo_loss(PROBLEM.objective, model, gpt2().eval(), PROBLEM.data.batch(FORGET), 0.1)


def plain(model: nn.Module) -> Tensor:
    return PROBLEM.objective.loss(model, PROBLEM.data.batch(RETAIN))


@pytest.mark.parametrize("loss", [plain, npo])
@pytest.mark.parametrize("make", [llama, gpt2, lambda: adapted(llama(), Adapter(rank=2), 0)])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_reads_decided_rows_only_and_is_the_same_step(make: Any, loss: Any, parts: int) -> None:
    model, read = make(), list[tuple[int, ...]]()
    value, whole = gradients(model, loss)
    layer = embedding_layer(model, "output")
    assert layer is not None
    layer.register_forward_hook(lambda _, __, output: read.append(tuple(output.shape)))
    with decided_only(), micro_batches(parts):
        again, sparse = gradients(model, loss)
    torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)
    for one, other in zip(sparse, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    ids = FORGET if loss is npo else RETAIN
    decided = int((PROBLEM.data.targets[ids] != IGNORE).sum())
    # With micro-batches the backward pass may read every row again.
    assert {len(shape) for shape in read} == {2} and sum(rows for rows, _ in read) in {decided, decided * min(parts, 2)}


def test_features_and_evaluation_read_all_positions() -> None:
    model, batch = llama(), PROBLEM.data.batch(RETAIN)
    head = FeatureSite("lm_head", given=True)
    with decided_only():
        decisions, [features] = Features(PROBLEM, [head], "layers")(model, batch)
        assert len(features) == len(decisions.targets) == int((batch.targets != IGNORE).sum())
        torch.testing.assert_close(features @ model.lm_head.weight.T, decisions.logits)
    shapes: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    PROBLEM.objective.measure(model, batch)
    assert shapes == [(6, LONG, VOCABULARY)]


@pytest.mark.parametrize("what", ["training", "npo"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_batch_of_eight_is_four_of_two(make: Callable[[], nn.Module], what: str) -> None:
    """Texts of one to nine decided tokens: a mean over micro-batches would weigh short ones up."""

    def trained(accumulate: int) -> nn.Module:
        facts: dict[str, Any] = {"learning_rate": 0.1, "optimizer": "sgd", "accumulate": accumulate, "batch_size": 8}
        if what == "training":
            return Training(epochs=2, **facts).fit(make(), PROBLEM.data, PROBLEM.data.train, 0)
        return NPO(epochs=2, forget_batch_size=4, **facts)(make(), PROBLEM, None, 0).model

    one, four = trained(1), trained(4)
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(four.get_parameter(name), parameter, rtol=1e-10, atol=1e-12)
    assert not torch.equal(one.get_parameter(name), make().get_parameter(name))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("make", [lambda: gpt2(0.2), lambda: adapted(gpt2(0.2), Adapter(rank=2), 0)])
def test_recomputed_layers_draw_the_same_dropout_also_with_an_adapter(make: Callable[[], nn.Module]) -> None:
    results = []
    for recompute in (False, True):
        model = make().train()
        calls = [0]
        model.transformer.h[0].mlp.c_fc.register_forward_hook(
            lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1)
        )
        if recompute:
            checkpointed(model, "auto")
        torch.manual_seed(3)
        results.append(gradients(model, plain)[1])
        assert calls[0] == 1 + recompute
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert any(bool(gradient.any()) for gradient in results[0])
