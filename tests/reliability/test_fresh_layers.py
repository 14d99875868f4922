"""Layers of Hugging Face models get the values that a new model of the configuration gets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.core.data import Data
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.methods._layers import layers, reinitialise
from expunge.methods.bad_teacher import BadTeacher, incompetent
from expunge.methods.eu_k import EUk

transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def gpt2(**changes: Any) -> nn.Module:
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=1, **changes)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, max_position_embeddings=8, **SIZE))


def neox() -> nn.Module:
    config = transformers.GPTNeoXConfig(vocab_size=20, max_position_embeddings=8, **SIZE)
    return transformers.GPTNeoXForCausalLM(config)


def vit() -> nn.Module:
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 4}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**shape, **SIZE))


class Wrapped(nn.Module):
    """A model of one's own around one of transformers, with another layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = gpt2(), nn.Linear(20, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.scale(self.inner(tokens).logits)
        return logits


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2": gpt2,
    "GPT-2 without ties": lambda: gpt2(tie_word_embeddings=False),
    "Llama": llama,
    "GPT-NeoX": neox,
    "ViT, with tokens of its own": vit,
    "wrapped": Wrapped,
}


@pytest.mark.parametrize("name", MODELS)
def test_fresh_values_are_those_of_a_new_model(name: str) -> None:
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    teacher = incompetent(model, 3)
    inner = model.inner if isinstance(model, Wrapped) else model
    with forked(3):
        fresh = type(inner)(inner.config)
    ours = teacher.inner if isinstance(teacher, Wrapped) else teacher
    wanted = dict(fresh.named_parameters())
    assert all(torch.equal(wanted[name], parameter) for name, parameter in ours.named_parameters())
    assert all(not bool((parameter == 7.0).any()) for parameter in teacher.parameters())
    assert all(bool((parameter == 7.0).all()) for parameter in model.parameters())


def test_frozen_parameters_and_other_layers_stay() -> None:
    model = gpt2()
    model.get_parameter("transformer.h.1.mlp.c_proj.bias").requires_grad_(False).data.fill_(7.0)
    before = copy.deepcopy(model.state_dict())
    reinitialise(model, [layer for layer in layers(model) if layer.name.endswith("1.mlp.c_proj")], 5)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)]
    assert changed == ["transformer.h.1.mlp.c_proj.weight"]


def problem() -> Problem:
    rows = torch.randint(20, (14, 9), generator=torch.Generator().manual_seed(0))
    data = Data(rows[:, :-1], rows[:, 1:], torch.arange(10), torch.arange(10, 14), tuple(map(str, range(20))))
    return Problem(data, torch.arange(4), torch.arange(4, 10), data.test)


@pytest.mark.parametrize("method", [BadTeacher(epochs=1), EUk(epochs=1), EUk(epochs=1, k=30)], ids=str)
@pytest.mark.parametrize("name", ["GPT-2", "GPT-2 without ties", "Llama", "wrapped"])
def test_methods_with_fresh_layers_run_on_language_models(name: str, method: BadTeacher | EUk) -> None:
    model = MODELS[name]().eval()
    done = method(model, problem(), None, 0)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), done.model.parameters(), strict=True))
