"""Generation is that of a loop that reads the whole text anew for every token; ROUGE-L is counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.audits.generated import Generated, recall, recalls
from expunge.core import generation
from expunge.core.case import Case
from expunge.core.data import IGNORE, Batch, Data
from expunge.core.generation import generated, prompts_and_answers
from expunge.core.problem import Problem
from expunge.models.gpt import GPT

transformers = pytest.importorskip("transformers")

VOCABULARY, CONTEXT = 23, 24
PROMPTS = [
    torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
    for length in (3, 7, 3, 5, 1, 7)
]
MOST = [6, 4, 9, 5, 8, 0]


def gpt2() -> nn.Module:
    facts = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**facts, bos_token_id=0, eos_token_id=0, initializer_range=0.5)
    return transformers.GPT2LMHeadModel(config)


def llama(**changes: Any) -> nn.Module:
    facts = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": CONTEXT}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.5}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts | heads | changes))


def small() -> nn.Module:
    texts = torch.randint(VOCABULARY, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    ids = torch.arange(4)
    data = Data(texts[:, :-1], texts[:, 1:], ids[:2], ids[2:], tuple(map(str, range(VOCABULARY))))
    model = GPT(width=16, layers=2, heads=2)(data)
    for parameter in model.parameters():
        parameter.data *= 4
    return model


def checkpointing() -> nn.Module:
    model = llama(use_cache=False)
    model.gradient_checkpointing_enable()
    return model


def naive(model: nn.Module, prompt: Tensor, most: int, stop: set[int]) -> list[int]:
    text = prompt.tolist()
    for _ in range(most):
        with torch.no_grad():
            returned = model(torch.tensor([text]))
        logits = returned if isinstance(returned, Tensor) else returned.logits
        text.append(int(logits[0, -1].argmax()))
        if text[-1] in stop:
            break
    return text[len(prompt) :]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("make", [gpt2, llama, small, checkpointing])
def test_it_is_the_naive_loop(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make().eval()
    plain = [naive(model, prompt, most, set()) for prompt, most in zip(PROMPTS, MOST, strict=True)]
    # A token that the texts have somewhere in the middle.
    stop = {plain[2][3], plain[3][2]}
    ended = [naive(model, prompt, most, stop) for prompt, most in zip(PROMPTS, MOST, strict=True)]
    assert ended != plain
    model.train()
    for together, spread in ((1, 16), (2, 16), (64, 0), (64, 2), (64, 16)):
        monkeypatch.setattr(generation, "TOGETHER", together)
        monkeypatch.setattr(generation, "SPREAD", spread)
        assert [text.tolist() for text in generated(model, PROMPTS, MOST)] == plain
        assert [text.tolist() for text in generated(model, PROMPTS, MOST, stop=stop)] == ended
    assert all(module.training for module in model.modules())


def test_a_cache_reads_each_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = llama(), list[int]()
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    generated(model, [PROMPTS[1]], [6])
    assert read == [7, 1, 1, 1, 1, 1]


def test_prompts_end_where_answers_begin() -> None:
    inputs = torch.arange(18).reshape(3, 6)
    targets = torch.full((3, 6), IGNORE)
    targets[0, 2:4], targets[0, 5], targets[1, 0] = torch.tensor([3, 4]), 9, 7
    prompts, answers = prompts_and_answers(Batch(inputs, targets, torch.arange(3)))
    assert [p.tolist() for p in prompts] == [[0, 1, 2], [6], []]
    assert [a.tolist() for a in answers] == [[3, 4], [7], []]
    mask = torch.ones(3, 6).long()
    mask[0, 0] = 0
    named = Batch({"input_ids": inputs, "attention_mask": mask}, targets, torch.arange(3))
    assert [p.tolist() for p in prompts_and_answers(named)[0]] == [[1, 2], [6], []]


@pytest.mark.parametrize(
    ("right", "own", "value"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b c d", "a x c d", 0.75),
        ("a b c d", "d c b a", 0.25),
        ("a b c d", "x y a z b", 0.5),
        ("a b c d", "", 0.0),
        ("a a b", "a b a b", 1.0),
        ("the cat sat on the mat", "the cat lay on a mat", 4 / 6),
        ("", "a", 0.0),
    ],
)
def test_recall_by_hand(right: str, own: str, value: float) -> None:
    assert recall(right.split(), own.split()) == value


class Reciter(nn.Module):
    """Writes, whatever it reads, the token that follows the last one in a fixed order, or always the same."""

    def __init__(self, following: dict[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(VOCABULARY, VOCABULARY))
        with torch.no_grad():
            for token in range(VOCABULARY):
                self.weight[token, following.get(token, 0)] = 1

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens]


class Letters:
    """A tokenizer of letters: token 1 is `a`, token 22 ends a text, and token 21 is a sign that is no word."""

    eos, size = 22, VOCABULARY

    def decode(self, ids: list[int]) -> str:
        return "".join("" if i == self.eos else "!" if i == 21 else f"{chr(96 + i)} " for i in ids)


def problem(tokenizer: Any) -> Problem:
    """Texts 1 2 3 ..., with the prompt 1 2 and the answer 3 4 5 6 and EOS; the last text is only signs."""
    text = torch.tensor([[1, 2, 3, 4, 5, 6, 22]] * 5 + [[1, 2, 21, 21, 21, 21, 22]])
    targets = text[:, 1:].clone()
    targets[:, 0] = IGNORE
    ids, labels = torch.arange(6), tuple(map(str, range(VOCABULARY)))
    data = Data(text[:, :-1], targets, ids[:5], ids[5:], labels, tokenizer=tokenizer)
    return Problem(data, ids[:3], ids[3:5], ids[5:])


def test_the_audit_lets_the_model_go_on_from_its_own_words() -> None:
    knows = {2: 3, 3: 4, 4: 5, 5: 6, 6: 22}
    # After one wrong word it goes on from there, where teacher forcing would say 4 of 5.
    strays = knows | {3: 9, 9: 5}
    for tokenizer, values in ((Letters(), [1.0, 3 / 4]), (None, [1.0, 4 / 5])):
        case = problem(tokenizer)
        found = [float(recalls(Reciter(following), case, case.forget)[0]) for following in (knows, strays)]
        assert found == pytest.approx(values)
    signs = problem(Letters())
    assert recalls(Reciter({2: 21, 21: 21}), signs, signs.test).tolist() == [1.0]
    scores = Generated()(Reciter(knows), Case(0, signs, Reciter(knows)), 0)
    assert [(s.metric, s.split, s.role) for s in scores] == [
        ("rouge_l", "forget", "knowledge"),
        ("rouge_l", "retain", "description"),
        ("rouge_l", "test", "description"),
    ]
    assert scores[0].values.tolist() == [1.0] * len(signs.unexposed) and scores[2].values.tolist() == [0.0]


def test_the_end_of_a_text_is_not_written_over() -> None:
    model = Reciter({1: 2, 2: 3, 3: 22, 22: 5})
    assert [t.tolist() for t in generated(model, [torch.tensor([1]), torch.tensor([2])], [6, 6], stop={22})] == [
        [2, 3, 22],
        [3, 22],
    ]
