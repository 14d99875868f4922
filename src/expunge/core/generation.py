"""Greedy generation: what a causal language model writes after a prompt.

Prompts of one length run together, so there is no padding, and every position is what it is for a prompt alone.
A model from transformers keeps keys and values of earlier tokens: each step reads one new token. Any other causal model
reads the whole text again in each step.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.data import IGNORE, Batch
from expunge.core.device import forward_pass, precision
from expunge.core.forward import chosen_output
from expunge.core.modules import evaluating, first_parameter

CACHES = ("cache", "past_key_values")
"""What transformers calls keys and values of earlier tokens, newest name first, as an argument and in outputs."""
TOGETHER = 64
"""Most prompts that run together."""


def generated(
    model: nn.Module,
    prompts: Sequence[Tensor],
    most: Sequence[int],
    *,
    stop: Collection[int] = (),
    output: str | int | None = None,
) -> list[Tensor]:
    """Continue each prompt by the most likely token, again and again.

    Args:
        model: A causal language model; runs in evaluation mode, and its modes are restored.
        prompts: Token ids of each prompt, `[t]` with at least one.
        most: Most new tokens of each prompt. Prompt and new tokens together must fit the model's context, but for the
            last one, which is not read.
        stop: Tokens that end a text, such as that of EOS.
        output: Which output holds the logits, as in `output_of`.

    Returns:
        The new tokens of each prompt on the CPU, with the token that ended it; `[k]` int64.
    """
    results: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * len(prompts)
    step = _Cached if _cache_of(model) else _Plain
    with evaluating(model), torch.no_grad(), forward_pass(first_parameter(model).device, precision()):
        for rows in _groups(prompts):
            tokens = torch.stack([prompts[row] for row in rows]).to(first_parameter(model).device)
            limits = [most[row] for row in rows]
            new = _continue(step(model, output), tokens, limits, stop)
            for row, text, limit in zip(rows, new, limits, strict=True):
                results[row] = _ended(text[:limit], stop)
    return results


def prompts_and_answers(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """The tokens before the first decided one, and the decided tokens that follow without a gap, of each text.

    Args:
        batch: Texts with next tokens `[b, t]`. Inputs are tokens `[b, t]`, or a mapping with `input_ids` and, if there
            is padding before or in a prompt, `attention_mask`.

    Returns:
        A prompt `[p]` and an answer `[a]` per text; both are empty if nothing is decided.
    """
    named = batch.inputs if isinstance(batch.inputs, Mapping) else {"input_ids": batch.inputs}
    inputs = named["input_ids"]
    prompts, answers = [], []
    for tokens, read, targets in zip(inputs, named.get("attention_mask", inputs == inputs), batch.targets, strict=True):
        at = (targets != IGNORE).nonzero().flatten()
        # Of a conversation with several answers this is the first.
        run = at[at - at[:1] == torch.arange(len(at), device=at.device)]
        end = int(run[0]) + 1 if len(run) else 0
        prompts.append(tokens[:end][read[:end].bool()])
        answers.append(targets[run])
    return prompts, answers


def _groups(prompts: Sequence[Tensor]) -> Iterator[list[int]]:
    """Prompts of one length, at most `TOGETHER` of them."""
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(row)
    for length in sorted(by_length):
        rows = by_length[length] if length else []
        yield from (rows[at : at + TOGETHER] for at in range(0, len(rows), TOGETHER))


def _continue(step: _Plain | _Cached, tokens: Tensor, limits: Sequence[int], stop: Collection[int]) -> Tensor:
    """New tokens `[b, k]`; of a text that has ended, those behind its end mean nothing."""
    new, active = tokens[:, :0], torch.ones(len(tokens), dtype=torch.bool)
    for length in range(max(limits)):
        active &= torch.tensor(limits) > length
        if not active.any():
            break
        token = step(torch.cat([tokens, new], 1)).argmax(1, keepdim=True)
        new = torch.cat([new, token], 1)
        active &= torch.tensor([value not in stop for value in token.flatten().tolist()])
    return new.cpu()


class _Plain:
    """The next token's logits `[b, v]`, from the whole text."""

    def __init__(self, model: nn.Module, output: str | int | None) -> None:
        self.model, self.output = model, output

    def __call__(self, tokens: Tensor) -> Tensor:
        return chosen_output(self.model(tokens), self.output, self.model)[:, -1]


class _Cached(_Plain):
    """The same from the tokens that were not read yet, and keys and values of the others."""

    def __init__(self, model: nn.Module, output: str | int | None) -> None:
        super().__init__(model, output)
        self.name = _cache_of(model)
        self.past: Any = None
        self.read = 0
        # Logits of a prompt's earlier positions are not needed.
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {}

    def __call__(self, tokens: Tensor) -> Tensor:
        past = {self.name: self.past, "use_cache": True}
        returned = self.model(tokens[:, self.read :], **past, **self.last)
        self.past, self.read = getattr(returned, self.name), tokens.shape[1]
        return chosen_output(returned, self.output, self.model)[:, -1]


def _cache_of(model: nn.Module) -> str:
    """Name of the argument that takes earlier keys and values; empty if the model takes none."""
    arguments = _arguments(model)
    return next((name for name in CACHES if {name, "use_cache"} <= arguments), "")


def _arguments(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _ended(text: Tensor, stop: Collection[int]) -> Tensor:
    ends = [i for i, token in enumerate(text.tolist()) if token in stop]
    return text[: ends[0] + 1] if ends else text
