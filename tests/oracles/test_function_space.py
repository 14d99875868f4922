"""Predicted answers against training itself: exact for a model that is linear in its weights, sampled without bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.numerics.function_space import course
from expunge.numerics.linearised import Draw, Update

CLASSES, RETAIN, FORGET, SIZE = 3, 9, 6, 5


def toy(count: int = RETAIN + FORGET) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    model = nn.Linear(SIZE, CLASSES).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    with torch.no_grad():  # most forget examples are known, so that there is something to lose
        y[RETAIN : count - 1] = model(x).argmax(1)[RETAIN : count - 1]
    return model, x, y


def gram_of(x: Tensor) -> Tensor:
    """Of logits W x + b: each logit has weights of its own, so that K_ij = (<x_i, x_j> + 1) I."""
    return torch.kron(x @ x.T + 1, torch.eye(CLASSES, dtype=torch.float64))


def update(
    ascent_weight: float, momentum: float = 0.0, step: float = 0.2, sizes: tuple[int, int] = (RETAIN, FORGET)
) -> Update:
    return Update(step, ascent_weight, Draw(sizes[0], sizes[0]), Draw(sizes[1], sizes[1]), momentum)


@pytest.mark.parametrize("ascent_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_linear_model_is_followed_exactly(ascent_weight: float, momentum: float) -> None:
    model, x, y = toy()
    with torch.no_grad():
        logits = model(x)
    found = course(gram_of(x), logits, y, RETAIN, update(ascent_weight, momentum), 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=momentum)
    seen = []
    for _ in range(41):
        right = (model(x).argmax(1) == y).double()
        seen.append((float(right[:RETAIN].mean()), float(right[RETAIN:].mean())))
        optimizer.zero_grad()
        losses = F.cross_entropy(model(x), y, reduction="none")
        ((1 - ascent_weight) * losses[:RETAIN].mean() - ascent_weight * losses[RETAIN:].mean()).backward()
        optimizer.step()
    assert found.retain.tolist() == [a for a, _ in seen] and found.forget.tolist() == [b for _, b in seen]
    assert len(set(seen)) > 1


def test_logits_themselves_are_followed_not_only_answers() -> None:
    """With one step, from the shares' flips over a ladder of steps: answers change exactly where training changes them."""
    model, x, y = toy()
    with torch.no_grad():
        logits = model(x)
    for step in (0.5, 2.0, 8.0, 30.0):
        found = course(gram_of(x), logits, y, RETAIN, update(0.5, step=step), 1)
        clone = nn.Linear(SIZE, CLASSES).double()
        clone.load_state_dict(model.state_dict())
        losses = F.cross_entropy(clone(x), y, reduction="none")
        (0.5 * losses[:RETAIN].mean() - 0.5 * losses[RETAIN:].mean()).backward()
        with torch.no_grad():
            for parameter in clone.parameters():
                parameter.sub_(parameter.grad, alpha=step)
            right = (clone(x).argmax(1) == y).double()
        assert found.forget[1] == right[RETAIN:].mean() and found.retain[1] == right[:RETAIN].mean()


def test_of_a_sample_each_pulls_itself_as_in_the_whole_set() -> None:
    """Examples that share nothing: what each does to itself has the weight 1 / n, whatever the sample's size."""
    classes, retain, forget = 2, 4, 4
    gram = torch.eye((retain + forget) * classes, dtype=torch.float64)
    logits = torch.tensor([[2.0, 0.0]]).repeat(retain + forget, 1).double()
    targets = torch.zeros(retain + forget, dtype=torch.int64)
    plan = Update(1.0, 0.5, Draw(100, 100), Draw(50, 50))
    whole = course(gram, logits, targets, retain, plan, 3000, until=0.5)
    # d(f_0 - f_1)/dt of each forget example is -2 mix / n sigmoid(f_1 - f_0).
    gap, steps = 2.0, 0
    while gap > 0:
        gap, steps = gap - 2 * 0.5 / 50 / (1 + torch.tensor(gap).exp().item()), steps + 1
    assert int((whole.forget <= 0.5).nonzero()[0, 0]) in (steps, steps + 1)
    assert whole.retain.min() == 1


def test_the_others_of_a_sample_stand_for_the_rest_of_the_set() -> None:
    """Copies of one example: a sample of some of them says what all of them say."""
    x = torch.ones(1, 2, dtype=torch.float64)

    def predicted(retain: int, forget: int) -> list[float]:
        rows = torch.cat([x.repeat(retain, 1), torch.tensor([[1.0, -1.0]]).double().repeat(forget, 1)])
        gram = torch.kron(rows @ rows.T, torch.eye(2, dtype=torch.float64))
        logits = torch.tensor([[1.0, 0.0]]).double().repeat(retain + forget, 1)
        targets = torch.zeros(retain + forget, dtype=torch.int64)
        found = course(gram, logits, targets, retain, update(0.4, sizes=(40, 20)), 60)
        return found.forget.tolist()

    assert predicted(40, 20) == predicted(8, 5) and min(predicted(8, 5)) == 0


def test_it_stops_where_it_is_told_to() -> None:
    model, x, y = toy()
    with torch.no_grad():
        logits = model(x)
    found = course(gram_of(x), logits, y, RETAIN, update(1.0), 500, until=0.4)
    assert found.forget[-1] <= 0.4 < found.forget[:-1].min()
    assert len(course(gram_of(x), logits, y, RETAIN, update(0.0), 5).forget) == 6


def test_shapes_that_disagree_are_refused() -> None:
    model, x, y = toy()
    with torch.no_grad():
        logits = model(x)
    for wrong in (
        (gram_of(x)[:-3, :-3], logits, y, RETAIN),
        (gram_of(x), logits, y[:-1], RETAIN),
        (gram_of(x), logits, y, 0),
        (gram_of(x), logits, y, len(y)),
    ):
        with pytest.raises(SpecError, match="course"):
            course(*wrong, update(0.1), 3)
    with pytest.raises(SpecError, match="not finite"):
        course(gram_of(x) * float("nan"), logits, y, RETAIN, update(0.1), 3)
