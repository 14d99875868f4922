"""Some forget examples for the report, with the answer of every model of the first seed to each.

The gallery is off unless the spec says `gallery = true`. The forget set is often personal data, and more people read a
report than a training set, so examples are copied into a record only on request. The gallery writes up to 24 pictures,
at most 48 pixels wide, or 12 texts. They are drawn at random from the part of the forget set that no attack uses. No
verdict depends on them.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.core.data import Batch, Data
from expunge.core.decisions import correct, knows
from expunge.core.generation import generated, prompts_and_answers
from expunge.core.generators import generator_of
from expunge.core.modules import evaluating
from expunge.core.problem import Problem
from expunge.pipeline.cloud import Cloud
from expunge.train.loop import in_order

FORMAT = 3
PICTURES, TEXTS = 24, 12
SIDE = 48
"""Longest side of a picture in pixels; larger pictures are averaged down."""
TOKENS = 48
"""Longest continuation in tokens. A longer text is judged as a whole, and only its start is shown."""
BYTES = tuple(str(byte) for byte in range(256))

Json = dict[str, Any]
Name = tuple[str, str | None]
"""Label of the model, and label of the attack that changed it, if any."""


def gallery(problem: Problem, models: Iterable[tuple[Name, nn.Module]], seed: int) -> Json:
    """Ask every model about some of the forget examples.

    Args:
        problem: The problem of the models' seed.
        models: Read one at a time. Each model answers in evaluation mode; its own mode is restored.
        seed: The run's seed, for the reader of the report.

    Returns:
        Plain data: kind (`images`, `texts`, or `vectors`, of which nothing is shown), models, and examples with each
        model's answer. Of a classifier also the classes' names and a map of its answers, see `pipeline.cloud`.
    """
    data = problem.data
    kind = (
        "texts"
        if data.has_tokens
        else "images"
        if data.has_classes and isinstance(data.example, Tensor) and _pixels(data.example) is not None
        else "vectors"
    )
    ids = chosen(problem, {"texts": TEXTS, "images": PICTURES}.get(kind, 0))
    names, answers, clouds = [], [], Cloud.of(problem)
    for (model, attack), module in models if len(ids) else ():
        names.append({"model": model, "attack": attack})
        clouds.add(module, problem)
        with evaluating(module):
            answer = _texts if kind == "texts" else _labels
            replies = [reply for batch in in_order(data, ids) for reply in answer(module, problem, batch)]
            answers.append(replies)
    facts = _written(problem, ids) if kind == "texts" else _pictured(problem, ids) if kind == "images" else []
    examples = [fact | {"answers": list(replies)} for fact, *replies in zip(facts, *answers, strict=True)]
    return {
        "format": FORMAT,
        "kind": kind,
        "seed": seed,
        "of": len(problem.forget),
        "different": len(data.group_of(problem.forget).unique()),
        "models": names,
        "examples": examples,
        **({"labels": list(data.labels), "map": clouds.as_json()} if clouds.places else {}),
    }


def chosen(problem: Problem, count: int) -> Tensor:
    """Up to `count` different examples of the unexposed forget set, at random, in increasing order."""
    ids = problem.unexposed
    _, first = np.unique(problem.data.group_of(ids).numpy(), return_index=True)
    different = ids[torch.from_numpy(first)]
    order = torch.randperm(len(different), generator=generator_of(0, "gallery"))
    return different[order[:count]].sort().values


def _labels(model: nn.Module, problem: Problem, batch: Batch) -> list[Json]:
    with torch.no_grad():
        decisions = problem.objective.decisions(model, batch)
    answers, right = decisions.logits.argmax(1).tolist(), correct(decisions).tolist()
    return [{"said": problem.data.labels[a], "knows": k} for a, k in zip(answers, right, strict=True)]


def _pictured(problem: Problem, ids: Tensor) -> list[Json]:
    data, true = problem.data, problem.true_targets
    pixels = _pixels(data.batch(ids).inputs)
    assert pixels is not None
    facts = []
    for picture, row in zip(pixels, ids.tolist(), strict=True):
        trained = data.labels[int(data.targets[row])]
        was = trained if true is None else data.labels[int(true[row])]
        url = "data:image/png;base64," + base64.b64encode(png(picture)).decode()
        facts.append({"id": row, "picture": url, "trained": trained, "true": None if was == trained else was})
    return facts


def _pixels(inputs: Tensor) -> np.ndarray | None:
    """Grey or coloured pictures as `[n, h, w, c]` bytes; `None` if the inputs are not pictures."""
    images = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs
    if not inputs.is_floating_point() or images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 8:
        return None
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:  # normalised by the loader: only the range is known
        images = (images - low) / max(high - low, 1e-12)
    longest = max(images.shape[2:])
    if longest > SIDE:
        images = F.interpolate(images, [max(side * SIDE // longest, 1) for side in images.shape[2:]], mode="area")
    return (255 * images).round().byte().permute(0, 2, 3, 1).numpy()


def png(pixels: np.ndarray) -> bytes:
    """Pixels `[h, w, c]` in bytes, grey or red, green, blue, as a PNG file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def _texts(model: nn.Module, problem: Problem, batch: Batch) -> list[Json]:
    """Greedy answers to the prompts, as long as the right answers, and whether all right tokens are the most likely."""
    prompts, answers = prompts_and_answers(batch)
    with torch.no_grad():
        right = knows(problem.objective.decisions(model, batch), batch.size)
    stop = () if problem.data.tokenizer is None else (problem.data.tokenizer.eos,)
    most = [min(len(answer), TOKENS) for answer in answers]
    texts = generated(model, prompts, most, stop=stop, output=problem.objective.output)
    return [{"said": _decoded(problem.data, text), "knows": bool(k)} for text, k in zip(texts, right, strict=True)]


def _written(problem: Problem, ids: Tensor) -> list[Json]:
    prompts, answers = prompts_and_answers(problem.data.batch(ids))
    return [
        {
            "id": row,
            "prompt": _decoded(problem.data, prompt[-4 * TOKENS :]),
            "secret": _decoded(problem.data, answer[:TOKENS]),
        }
        for row, prompt, answer in zip(ids.tolist(), prompts, answers, strict=True)
    ]


def _decoded(data: Data, tokens: Tensor) -> str:
    if data.tokenizer is not None:
        # A model may have more outputs than tokens.
        return data.tokenizer.decode([token for token in tokens.tolist() if 0 <= token < data.tokenizer.size])
    if data.labels == BYTES:
        return bytes(tokens.tolist()).decode("utf-8", "replace")
    words = [data.labels[token] for token in tokens.tolist()]
    return (" " if all(word.isdigit() for word in words) else "").join(words)
