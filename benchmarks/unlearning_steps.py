"""NPO steps of this library against a plain transformers loop, in time and memory (aim 1.05); logits where decided.

A Llama with a vocabulary of 8,192 takes 6 steps on forget batches and retain batches of 8 texts of 64 tokens, of which
the last 16 are answers. The plain loop is what one would write by hand: logits of all positions, a frozen teacher and
Adam. Weights after both must agree. The same loop of this library with logits of all positions shows what decided
positions save. Each memory figure is the growth of the peak of a fresh process.
"""

from __future__ import annotations

import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.core.data import IGNORE, Data
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.methods.npo import NPO
from expunge.objectives import language_modelling
from expunge.train.loop import paired

TEXTS, LENGTH, ANSWER, VOCABULARY, WIDTH, BATCH = 96, 64, 16, 8192, 128, 8
AIM, BETA, RATE = 1.05, 0.1, 1e-3


def problem() -> Problem:
    rows = torch.randint(VOCABULARY, (TEXTS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    targets = rows[:, 1:].clone()
    targets[:, : LENGTH - ANSWER] = IGNORE
    ids = torch.arange(TEXTS)
    forget, retain, test = ids[: TEXTS // 4], ids[TEXTS // 4 : 3 * TEXTS // 4], ids[3 * TEXTS // 4 :]
    data = Data(
        rows[:, :-1], targets, torch.cat([forget, retain]), test,
        objective=language_modelling.LanguageModelling(vocabulary=VOCABULARY),
    )  # fmt: skip
    return Problem(data, forget, retain, test)


def llama() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, use_cache=False, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


def ours(model: nn.Module, of: Problem) -> nn.Module:
    method = NPO(epochs=1, batch_size=BATCH, forget_batch_size=BATCH, learning_rate=RATE, beta=BETA)
    return method(model, of, None, 0).model


def with_all_logits(model: nn.Module, of: Problem) -> nn.Module:
    with mock.patch.object(language_modelling, "chooses_positions", lambda _: False):
        return ours(model, of)


def plain(model: nn.Module, of: Problem) -> nn.Module:
    student, teacher = copy.deepcopy(model).train(), copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE, fused=True)
    generator = generator_of(0, "batches")
    for pair in paired(of.data, of.retain, of.forget, BATCH, BATCH, 1, generator):
        optimizer.zero_grad()
        with torch.no_grad():
            before = -_losses(teacher(pair.forget.inputs).logits, pair.forget.targets).sum(1)
        now = -_losses(student(pair.forget.inputs).logits, pair.forget.targets).sum(1)
        forget = -(2 / BETA) * F.logsigmoid(-BETA * (now - before)).mean()
        logits = student(pair.retain.inputs).logits
        retain = F.cross_entropy(logits.flatten(0, 1), pair.retain.targets.flatten(), ignore_index=IGNORE)
        (forget + retain).backward()
        optimizer.step()
    return student


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")


def peak(name: str) -> float:
    """MiB by which the memory of this process grows at most; called in a process of its own, on Linux."""
    torch.set_num_threads(1)
    model, of = llama(), problem()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _memory("VmRSS")
    globals()[name](model, of)
    return _memory("VmHWM") - before


def _memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def peak_of(name: str) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, name).result()


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    model, of = llama(), problem()
    pairs = zip(ours(model, of).parameters(), plain(model, of).parameters(), strict=True)
    gap = max(float((a - b).detach().abs().max()) for a, b in pairs)
    own, full, theirs = (peak_of(name) for name in ("ours", "with_all_logits", "plain"))
    print(f"NPO         {compare(lambda: ours(model, of), lambda: plain(model, of), repeats)}; aim {AIM}")
    print(f"            memory {own / theirs:.2f} ({own:.0f} MiB against {theirs:.0f}); weights differ by {gap:.1e}")
    print(f"decided     {compare(lambda: ours(model, of), lambda: with_all_logits(model, of), repeats)} of all logits")
    print(f"            memory {own / full:.2f} ({full:.0f} MiB with all logits)")


if __name__ == "__main__":
    main()
