"""Batched greedy generation with a cache against a loop that reads one whole text anew for every token (aim 5 times).

A Llama of 0.9 M weights, the size of `examples/people.toml`, writes 24 tokens after each of 32 prompts of 8 to 15
tokens. Both must write the same tokens, otherwise the comparison would mean nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks._ratio import compare
from expunge.core.generation import generated

PROMPTS, NEW, VOCABULARY, WIDTH, LAYERS = 32, 24, 1024, 128, 4
AIM = 5.0


def llama() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": LAYERS}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **sizes
    )
    return transformers.LlamaForCausalLM(config).eval()


def naive(model: nn.Module, prompts: list[Tensor]) -> list[Tensor]:
    texts = []
    for prompt in prompts:
        text = prompt[None]
        for _ in range(NEW):
            with torch.no_grad():
                token = model(text, use_cache=False).logits[:, -1].argmax(1, keepdim=True)
            text = torch.cat([text, token], 1)
        texts.append(text[0, len(prompt) :])
    return texts


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    model = llama()
    prompts = [
        torch.randint(VOCABULARY, (8 + i % 8,), generator=torch.Generator().manual_seed(i)) for i in range(PROMPTS)
    ]
    limits = [NEW] * PROMPTS
    same = all(map(torch.equal, generated(model, prompts, limits), naive(model, prompts)))
    ratio = compare(lambda: naive(model, prompts), lambda: generated(model, prompts, limits), repeats)
    print(
        f"generation  {ratio.best:.1f} times faster than a naive loop (pairs {ratio.low:.1f} to {ratio.high:.1f}); ",
        end="",
    )
    print(f"aim {AIM:g}; {'the same tokens' if same else 'DIFFERENT tokens'}")


if __name__ == "__main__":
    main()
