"""Greedy generation: what a causal language model writes after a prompt.

Prompts of similar length run together without padding: all texts grow by a token in each step, and a longer prompt
gives its own next token until it ends. So every position is what it is for the prompt alone. A model from transformers
keeps keys and values of earlier tokens: each step reads one new token. Any other causal model reads the whole text
again in each step.
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
TOGETHER, SPREAD = 64, 16
"""Most prompts that run together, and most tokens by which the longest of them exceeds the shortest."""


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
    step, plain = _Cached if _cache_of(model) else _Plain, [prompt.tolist() for prompt in prompts]
    with evaluating(model), torch.no_grad(), forward_pass(first_parameter(model).device, precision()):
        for rows in _groups([len(prompt) if limit else 0 for prompt, limit in zip(plain, most, strict=True)]):
            new = _continue(step(model, output), [plain[row] for row in rows], [most[row] for row in rows], stop)
            for row, text in zip(rows, new, strict=True):
                results[row] = torch.tensor(text)
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


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows with prompts of similar length, at most `TOGETHER`; those of length 0 are left out."""
    group: list[int] = []
    for row in sorted((row for row, length in enumerate(lengths) if length), key=lengths.__getitem__):
        if group and (len(group) == TOGETHER or lengths[row] > lengths[group[0]] + SPREAD):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _continue(
    step: _Plain | _Cached, prompts: list[list[int]], limits: Sequence[int], stop: Collection[int]
) -> list[list[int]]:
    """New tokens of each prompt. All texts grow by one token in each step: by their own while the prompt lasts."""
    place = first_parameter(step.model).device
    tokens = torch.tensor([prompt[: min(map(len, prompts))] for prompt in prompts], device=place)
    texts: list[list[int]] = [[] for _ in prompts]
    unfinished = set(range(len(prompts)))
    while unfinished:
        following, at = step(tokens).argmax(1).tolist(), tokens.shape[1]
        for row, prompt in enumerate(prompts):
            if at < len(prompt):
                following[row] = prompt[at]
            elif row in unfinished:
                texts[row].append(following[row])
                if following[row] in stop or len(texts[row]) == limits[row]:
                    unfinished.remove(row)
        tokens = torch.cat([tokens, torch.tensor(following, device=place)[:, None]], 1)
    return texts


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
