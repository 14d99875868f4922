"""Decisions and losses against numbers that can be worked out by hand, and known wrong versions that must differ."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.data import IGNORE, Batch, Data
from expunge.core.decisions import Decisions, correct, decision_losses, kl, knows, loss, per_example
from expunge.core.example_ids import current_ids, example_ids
from expunge.methods.npo import npo_loss
from expunge.models.gpt import GPT
from expunge.objectives.classification import Classification
from expunge.objectives.language_modelling import LanguageModelling

# Algebra in double precision: a handful of roundings of 1e-16 each.
EXACT = {"rtol": 1e-12, "atol": 1e-14}


class Fixed(nn.Module):
    """Says the same whatever it is asked, and remembers what it was asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked = inputs
        return self.logits


def two_by_hand() -> tuple[Fixed, Batch]:
    """Two examples, three classes; exp of the logits is whole, so that probabilities are fractions."""
    logits = torch.tensor([[1.0, 2.0, 5.0], [4.0, 3.0, 1.0]], dtype=torch.float64).log()
    return Fixed(logits), Batch(torch.zeros(2, 4), torch.tensor([2, 1]), torch.tensor([7, 3]))


def test_a_classifier_decides_once_per_example() -> None:
    model, batch = two_by_hand()
    found = Classification(classes=3).decisions(model, batch)
    assert torch.equal(found.logits, model.logits)
    assert found.targets.tolist() == [2, 1] and found.example.tolist() == [0, 1]
    assert correct(found).tolist() == [True, False]
    assert knows(found, 2).tolist() == [True, False]
    # p(right) is 5/8 and 3/8.
    torch.testing.assert_close(
        decision_losses(found), -torch.tensor([5 / 8, 3 / 8], dtype=torch.float64).log(), **EXACT
    )
    torch.testing.assert_close(loss(found).item(), -(math.log(5 / 8) + math.log(3 / 8)) / 2, **EXACT)


def test_a_language_model_decides_at_each_token_that_is_not_masked() -> None:
    weights = torch.tensor([[[1.0, 3.0], [3.0, 1.0]], [[1.0, 1.0], [1.0, 7.0]]], dtype=torch.float64)
    targets = torch.tensor([[1, IGNORE], [0, 1]])
    batch = Batch(torch.zeros(2, 2, dtype=torch.int64), targets, torch.tensor([0, 1]))
    found = LanguageModelling(vocabulary=2).decisions(Fixed(weights.log()), batch)
    assert found.targets.tolist() == [1, 0, 1] and found.example.tolist() == [0, 1, 1]
    losses = -torch.tensor([3 / 4, 1 / 2, 7 / 8], dtype=torch.float64).log()
    torch.testing.assert_close(decision_losses(found), losses, **EXACT)
    torch.testing.assert_close(loss(found), losses.mean(), **EXACT)
    sums = per_example(decision_losses(found), found.example, 2)
    torch.testing.assert_close(sums, torch.stack([losses[0], losses[1] + losses[2]]), **EXACT)
    means = per_example(decision_losses(found), found.example, 2, mean=True)
    torch.testing.assert_close(means, torch.stack([losses[0], (losses[1] + losses[2]) / 2]), **EXACT)


def test_all_decisions_have_to_be_right() -> None:
    logits = torch.eye(3)[[0, 1, 2, 0, 1]]
    found = Decisions(logits, torch.tensor([0, 1, 2, 0, 2]), torch.tensor([0, 0, 0, 1, 1]))
    assert correct(found).tolist() == [True, True, True, True, False]
    assert knows(found, 2).tolist() == [True, False]


def test_an_example_without_decisions_has_no_loss_and_is_not_known() -> None:
    losses, example = torch.tensor([1.0, 2.0]), torch.tensor([0, 2])
    assert per_example(losses, example, 3).tolist() == [1.0, 0.0, 2.0]
    assert per_example(losses, example, 3, mean=True).isnan().tolist() == [False, True, False]
    assert knows(Decisions(torch.eye(3)[[0, 1]], torch.tensor([0, 1]), example), 4).tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_ids_reach_every_layer_during_the_pass_and_only_then() -> None:
    class Asks(Fixed):
        def forward(self, inputs: Tensor) -> Tensor:
            self.ids = current_ids()
            return super().forward(inputs)

    model, batch = two_by_hand()
    asks = Asks(model.logits.detach())
    Classification(classes=3).decisions(nn.Sequential(asks), batch)
    assert asks.ids.tolist() == [7, 3]
    assert current_ids() is None
    with example_ids(torch.tensor([1])):
        with example_ids(torch.tensor([2])):
            assert current_ids() == 2
        assert current_ids() == 1


def test_an_object_that_carries_logits_is_understood() -> None:
    class Carries(Fixed):
        def forward(self, inputs: Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=None, logits=super().forward(inputs))

    model, batch = two_by_hand()
    plain, carried = (Classification(classes=3).decisions(m, batch) for m in (model, Carries(model.logits.detach())))
    assert torch.equal(plain.logits, carried.logits)


def test_inputs_take_the_model_s_dtype_but_tokens_stay_whole() -> None:
    model, batch = two_by_hand()
    Classification(classes=3).decisions(model, batch)
    assert model.asked.dtype == torch.float64
    tokens = Fixed(torch.zeros(2, 2, 2, dtype=torch.float64))
    whole = torch.zeros(2, 2, dtype=torch.int64)
    LanguageModelling(vocabulary=2).decisions(tokens, Batch(whole, whole, torch.arange(2)))
    assert tokens.asked.dtype == torch.int64


@pytest.mark.parametrize(
    ("objective", "shape", "targets"),
    [
        (Classification(classes=10), (2, 9), torch.zeros(2, dtype=torch.int64)),
        (Classification(classes=10), (2, 4, 10), torch.zeros(2, dtype=torch.int64)),
        (LanguageModelling(vocabulary=10), (2, 4, 9), torch.zeros(2, 4, dtype=torch.int64)),
        (LanguageModelling(vocabulary=10), (2, 10), torch.zeros(2, 4, dtype=torch.int64)),
    ],
)
def test_an_output_of_the_wrong_width_is_refused(
    objective: Classification | LanguageModelling, shape: tuple[int, ...], targets: Tensor
) -> None:
    with pytest.raises(SpecError, match="10 outputs") as caught:
        objective.decisions(Fixed(torch.zeros(shape)), Batch(torch.zeros(2, 4), targets, torch.arange(2)))
    assert str(list(shape)) in str(caught.value) and "Fixed" in str(caught.value)


def test_the_objective_follows_the_kind_of_data() -> None:
    ids = torch.arange(2)
    classes = Data(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), ids[:1], ids[1:], ("a", "b"))
    tokens = Data(torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), ids[:1], ids[1:], ("a", "b"))
    assert isinstance(classes.objective, Classification)
    assert isinstance(tokens.objective, LanguageModelling)


# --- Knowing is reciting ---------------------------------------------------------------------------------------------


def greedy(model: nn.Module, prompt: list[int], length: int) -> list[int]:
    """The plainest decoder: the whole context again for each token."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(length):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_knowing_under_teacher_forcing_is_greedy_recitation() -> None:
    """On a small GPT, for its own continuations (known) and for ones with a single wrong token at each place."""
    prompt, length = 3, 6
    shape = Data(
        torch.zeros(1, prompt + length - 1).long(),
        torch.zeros(1, prompt + length - 1).long(),
        torch.tensor([0]),
        torch.tensor([], dtype=torch.int64),
        tuple("abcdefgh"),
    )
    model = GPT(width=16, layers=2, heads=2)(shape).double().eval()
    with torch.no_grad():  # away from its almost uniform start, so that continuations are not constant
        for parameter in model.parameters():
            parameter.mul_(8)
    rows, recited = [], []
    for seed in range(20):
        start = torch.randint(0, 8, (prompt,), generator=torch.Generator().manual_seed(seed)).tolist()
        said = greedy(model, start, length)
        for place in [None, *range(length)]:
            text = list(said)
            if place is not None:
                text[place] = (text[place] + 1) % 8
            rows.append(start + text)
            recited.append(greedy(model, start, length) == text)
    tokens = torch.tensor(rows)
    targets = tokens[:, 1:].clone()
    targets[:, : prompt - 1] = IGNORE
    batch = Batch(tokens[:, :-1], targets, torch.arange(len(rows)))
    assert knows(LanguageModelling(vocabulary=8).decisions(model, batch), batch.size).tolist() == recited
    assert sum(recited) == 20 and len({tuple(row) for row in rows[::7]}) > 10


# --- Losses between two models ---------------------------------------------------------------------------------------


def test_kl_is_summed_over_classes_and_averaged_over_decisions() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25, 0.5], [0.3, 0.3, 0.4]], dtype=torch.float64)
    by_hand = (p * (p / q).log()).sum(1).mean()
    # Logits are log-probabilities up to a constant of each row, which may not matter.
    found = kl(p.log() + 3, q.log() - 5)
    torch.testing.assert_close(found, by_hand, **EXACT)
    assert kl(p.log(), p.log()).item() == pytest.approx(0, abs=1e-15)
    # Known wrong: the default reduction divides by the number of classes too; and the other direction.
    divided = nn.functional.kl_div(q.log(), p, reduction="none").mean()
    assert abs(divided / found - 1 / 3) < 1e-12
    assert abs(kl(q.log(), p.log()) - found) > 1e-3


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def npo_by_hand(ratios: list[float], beta: float) -> float:
    """-(2 / beta) E log sigma(-beta log(p / p_ref))."""
    return -(2 / beta) * sum(math.log(sigmoid(-beta * ratio)) for ratio in ratios) / len(ratios)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 4.0])
def test_npo_on_a_classifier(beta: float) -> None:
    student, batch = two_by_hand()
    teacher = Fixed(torch.tensor([[1.0, 1.0, 2.0], [1.0, 3.0, 1.0]], dtype=torch.float64).log())
    ratios = [math.log((5 / 8) / (2 / 4)), math.log((3 / 8) / (3 / 5))]
    found = npo_loss(Classification(classes=3), student, teacher, batch, beta)
    torch.testing.assert_close(found.item(), npo_by_hand(ratios, beta), **EXACT)
    # Known wrong: logits in the place of log-probabilities.
    raw = (student.logits - teacher.logits)[[0, 1], [2, 1]].tolist()
    assert abs(npo_by_hand(raw, beta) - found.item()) > 1e-2
    found.backward()
    assert teacher.logits.grad is None


def test_npo_takes_the_likelihood_of_the_whole_example() -> None:
    weights = torch.tensor([[[1.0, 3.0], [3.0, 1.0]], [[1.0, 1.0], [1.0, 7.0]]], dtype=torch.float64)
    targets = torch.tensor([[1, IGNORE], [0, 1]])
    batch = Batch(torch.zeros(2, 2, dtype=torch.int64), targets, torch.tensor([0, 1]))
    student, teacher = Fixed(weights.log()), Fixed(torch.zeros(2, 2, 2, dtype=torch.float64))
    first = math.log((3 / 4) / (1 / 2))
    second = math.log((1 / 2) / (1 / 2)) + math.log((7 / 8) / (1 / 2))
    found = npo_loss(LanguageModelling(vocabulary=2), student, teacher, batch, 1.0).item()
    torch.testing.assert_close(found, npo_by_hand([first, second], 1.0), **EXACT)
    # Known wrong: a mean over tokens, which weighs long examples less.
    assert abs(found - npo_by_hand([first, second / 2], 1.0)) > 1e-2


def test_npo_with_a_shared_teacher_is_constant() -> None:
    """What `require_distinct` is for: the value is (2 / beta) log 2 whatever the weights, and it falls nowhere."""
    beta, batch = 0.5, two_by_hand()[1]
    for scale in (0.1, 1.0, 30.0):
        student = Fixed(two_by_hand()[0].logits.detach() * scale)
        shared, distinct = copy.copy(student), Fixed(torch.zeros(2, 3, dtype=torch.float64))
        value = npo_loss(Classification(classes=3), student, shared, batch, beta)
        torch.testing.assert_close(value.item(), 2 / beta * math.log(2), **EXACT)
        assert abs(npo_loss(Classification(classes=3), student, distinct, batch, beta).item() - value.item()) > 1e-3


def test_npo_s_gradient_weakens_as_the_example_is_forgotten() -> None:
    """d loss / d log p is 2 sigma(beta log(p / p_ref)) per example: bounded, unlike gradient ascent, and it dies away."""
    batch = Batch(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([0]))
    teacher, beta = Fixed(torch.zeros(1, 2, dtype=torch.float64)), 1.0
    for logit in (-6.0, -1.0, 0.0, 2.0):
        student = Fixed(torch.tensor([[logit, 0.0]], dtype=torch.float64))
        npo_loss(Classification(classes=2), student, teacher, batch, beta).backward()
        p = sigmoid(logit)
        # log p depends on its own logit with slope 1 - p.
        by_hand = 2 * sigmoid(beta * math.log(p / 0.5)) * (1 - p)
        torch.testing.assert_close(student.logits.grad[0, 0].item(), by_hand, **EXACT)
