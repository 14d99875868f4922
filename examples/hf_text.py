"""(c) A Hugging Face causal LM and texts in JSONL: a tiny Llama forgets codes that it recites."""

import json
import random
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import expunge


def encode(line: str, length: int = 10) -> dict[str, torch.Tensor]:
    """One JSON line as an item; bytes are the tokens, and only the answer is to be predicted (-100 elsewhere)."""
    prompt, answer = (list(text.encode()) for text in json.loads(line).values())
    tokens, padding = prompt + answer, length - len(prompt) - len(answer)
    return {
        "input_ids": torch.tensor(tokens + [0] * padding),
        "attention_mask": torch.tensor([1] * len(tokens) + [0] * padding),  # padding on the right
        "labels": torch.tensor([-100] * len(prompt) + answer + [-100] * padding),  # not shifted
    }


def build() -> LlamaForCausalLM:
    """Return a fresh model."""
    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, use_cache=False, **size))


def train(model: LlamaForCausalLM, items: torch.utils.data.Dataset) -> None:
    """Train with the model's own loss, which shifts the labels itself."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(50):
        for batch in DataLoader(items, batch_size=16, shuffle=True):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()


def main() -> None:
    """Write JSONL, train, unlearn, audit."""
    torch.manual_seed(0)
    draw = random.Random(0)
    names = ["".join(draw.sample("abcdefghijklmnopqrstuvwxyz", 4)) for _ in range(70)]
    texts = [json.dumps({"prompt": f"{name}: ", "answer": f"{draw.randrange(1000):03}"}) for name in names]
    Path("codes.jsonl").write_text("\n".join(texts))
    items = [encode(line) for line in Path("codes.jsonl").read_text().splitlines()]
    forget, retain, test = items[:20], items[20:50], items[50:]
    model = build()
    train(model, forget + retain)

    case = expunge.case(model, forget=forget, retain=retain, test=test, recipe=expunge.recipe(build, train))
    done = expunge.unlearn(case, "npo", epochs=5, batch_size=16, forget_batch_size=8, learning_rate=1e-3)
    print(expunge.audit(done, case, attacks=[{"name": "relearn", "batch_size": 16}]))


if __name__ == "__main__":
    main()
