"""Small data and Hugging Face models for the tests of blocks."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.data import Data


def images() -> Data:
    inputs = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Data(inputs, torch.arange(12) % 3, torch.arange(8), torch.arange(8, 12), tuple("abc"))


def texts() -> Data:
    text = torch.randint(0, 5, (12, 7), generator=torch.Generator().manual_seed(0))
    return Data(text[:, :-1], text[:, 1:], torch.arange(8), torch.arange(8, 12), tuple("abcde"), "tokens")


def gpt2() -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=5, n_positions=6, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    ids = {"vocab_size": 5, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **ids))
