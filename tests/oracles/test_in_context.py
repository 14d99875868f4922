"""The in-context audit on models whose knowledge is known: hidden by the head, retrained, collapsed, or mixed anew."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audits._context_sets import sets_of
from expunge.audits._contexts import correct
from expunge.audits._preferences import PENALTY, places, preferences
from expunge.audits._prompted import prompted
from expunge.audits.in_context import InContext, needed
from expunge.base.errors import SpecError
from expunge.core.case import Case, train_model
from expunge.core.choices import chosen_among
from expunge.core.data import Data
from expunge.data.people import People
from expunge.evidence.table import Measured, Table
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.numerics.concept_regression import fit_concept
from expunge.tasks.people import People as PeopleTask
from expunge.tasks.random_subset import RandomSubset
from expunge.tasks.whole_class import WholeClass
from expunge.train.evaluation import known_share
from expunge.train.option_embeddings import option_scores
from expunge.train.training import TrainedRecipe, Training

LABELS, WIDTH, FORGOTTEN = 5, 12, 2
AUDIT = InContext(demonstrations=(1, 2, 4), draws=4)


def clusters() -> Data:
    """Five labels, each of two clusters on opposite sides, so that a net must learn which belong together."""
    generator = torch.Generator().manual_seed(0)
    n = 400
    targets = torch.arange(n) % LABELS
    centres = torch.nn.functional.normalize(torch.randn(LABELS, WIDTH, generator=generator), dim=1)
    sides = 1 - 2 * (torch.arange(n) // LABELS % 2)
    inputs = 3 * sides[:, None] * centres[targets] + 0.5 * torch.randn(n, WIDTH, generator=generator)
    return Data(inputs, targets, torch.arange(300), torch.arange(300, n))


@pytest.fixture(scope="module")
def world():
    data = clusters()
    problem = WholeClass(label=FORGOTTEN)(data, 0, {})
    recipe = TrainedRecipe(MLP(widths=[64, 32]), Training(epochs=10, batch_size=32, learning_rate=1e-2), data)
    models = {
        (name, seed): train_model(recipe, data, ids, start + seed)
        for name, ids, start in (
            ("original", problem.train, 0),
            ("reference", problem.reference_train, 0),
            ("retrain", problem.reference_train, 100),
        )
        for seed in range(3)
    }
    return problem, recipe, models


def read(model, problem, audit=AUDIT):
    return {scores.key: scores for scores in audit(model, Case(0, problem, model), 0)}


def knowledge(scores, name="in_context"):
    entry = scores[name, "forget"]
    return float((entry.values - entry.baseline).mean())


def head_of(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def hidden_by_the_head(model):
    """The label is never answered: only the bias of the output layer changes."""
    model = copy.deepcopy(model)
    head_of(model).bias.data[FORGOTTEN] = -1e4
    return model


def test_a_suppressed_output_hides_nothing(world):
    problem, _, models = world
    original, hidden = models["original", 0], hidden_by_the_head(models["original", 0])
    assert known_share(hidden, problem, problem.unexposed) == 0
    before, after = read(original, problem), read(hidden, problem)
    assert knowledge(before) == knowledge(after) > knowledge(read(models["reference", 0], problem)) + 0.3
    for key, scores in before.items():
        assert np.array_equal(scores.values, after[key].values)
    assert after["in_context", "forget"].required


def test_knowledge_is_found_in_whatever_basis_it_hides(world):
    """Hidden units scaled down to a thousandth, or mixed, with the head turned back: the same function and reading."""
    problem, _, models = world
    original = models["original", 0]
    head = head_of(original)
    scale = torch.logspace(-3, 0, head.in_features, dtype=torch.float64)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*copy.deepcopy(list(original.children())[:-1])).double()
            self.head = nn.Linear(head.in_features, LABELS).double()
            self.head.weight.data = head.weight.data.double() / scale
            self.head.bias.data = head.bias.data.double()

        def forward(self, inputs):
            return self.head(self.body(inputs.double()) * scale)

    wide = InContext(demonstrations=(1, 2, 4), draws=4, dimension=32)
    scaled = Scaled()
    assert known_share(scaled, problem, problem.unexposed) == known_share(original, problem, problem.unexposed)
    assert abs(knowledge(read(scaled, problem, wide)) - knowledge(read(original, problem, wide))) < 0.02


@pytest.mark.parametrize("spoil", ["constant", "diverged"])
def test_a_model_without_features_answers_by_chance(world, spoil):
    problem, _, models = world
    model = copy.deepcopy(models["original", 0])
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    first.weight.data[:] = 0 if spoil == "constant" else float("nan")
    scores = read(model, problem)
    assert np.allclose(scores["in_context", "forget"].values, 1 / LABELS)
    assert knowledge(scores) == pytest.approx(0) and knowledge(scores, "in_context_chosen") == pytest.approx(0)
    assert all(np.isfinite(entry.values).all() for entry in scores.values())


def test_the_verdict_accuses_what_comes_back_and_not_retraining(world):
    problem, _, models = world
    measured = []
    for seed in range(3):
        row = {name: models[name, seed] for name in ("original", "reference", "retrain")}
        row["hidden"] = hidden_by_the_head(row["original"])
        for name, model in row.items():
            measured += [
                Measured(name, seed, None, scores) for scores in AUDIT(model, Case(seed, problem, model), seed)
            ]
    table = Table(measured, ["original", "reference", "retrain", "hidden"], [0, 1, 2], [])
    verdicts = {verdict.model: verdict for verdict in table.verdicts()}
    assert verdicts["hidden"].verdict == "incomplete"
    assert "in_context on forget" in " ".join(verdicts["hidden"].reasons)
    assert verdicts["retrain"].verdict == "inconclusive"
    shown = {(row["model"], row["metric"]): row for row in table.rows() if row["seed"] is None}
    for metric in ("in_context_needed", "in_context_chosen", "in_context_n4", "in_context_risk_n4"):
        assert (
            shown["reference", metric]["low"]
            <= shown["reference", metric]["value"]
            <= shown["reference", metric]["high"]
        )


def test_more_demonstrations_need_no_fewer_and_chosen_ones_are_the_same_for_the_same_model(world):
    problem, _, models = world
    scores = read(models["original", 0], problem)
    curve = [scores[f"in_context_n{n}", "forget"].values.mean() for n in (1, 2, 4)]
    assert curve == sorted(curve)
    assert float(scores["in_context_risk_n4", "forget"].values.mean()) < float(
        scores["in_context_risk_n1", "forget"].values.mean()
    )
    again = read(models["original", 0], problem)
    assert all(np.array_equal(again[key].values, entry.values) for key, entry in scores.items())


@pytest.mark.parametrize(
    ("accuracies", "number"), [([0.9, 1, 1], 1), ([0.2, 0.8, 0.9], 2), ([0.6, 0.7, 0.9], 8**0.5), ([0.1, 0.2, 0.3], 8)]
)
def test_the_number_needed_is_on_the_curve(accuracies, number):
    assert needed((1, 2, 4), accuracies, 0.8) == pytest.approx(number)


def people(count=10):
    pytest.importorskip("tokenizers")
    data = People(people=20, public=10, test=10, vocabulary=600)()
    return PeopleTask(count=count)(data, 0, {})


@pytest.fixture(scope="module")
def persons():
    problem = people()
    torch.manual_seed(0)
    return problem, GPT(width=16, layers=1, heads=2)(problem.data)


def test_questions_have_all_values_to_choose_from(persons):
    problem, _ = persons
    data = problem.data
    questions = chosen_among(data, problem.forget)
    for question, row, index in zip(questions, data.targets[problem.forget], problem.forget.tolist(), strict=True):
        text = data.tokenizer.decode([t for t in row.tolist() if t >= 0])
        assert question.options[question.right].strip() == text.strip()
        assert question.prompt + question.options[question.right] in data.tokenizer.decode(
            [*data.inputs[index].tolist(), data.tokenizer.eos]
        )
        assert len(set(question.options)) == 10 and list(question.options) == sorted(question.options)


class Reciting(nn.Module):
    """A language model whose hidden states point to the next token of the texts it knows, or away from it, and are
    noise elsewhere. Coordinates count differently in each model, so that a readout must learn them."""

    def __init__(self, data, ids, strength):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(16, len(data.labels), bias=False)
        self.head.weight.data = torch.randn(len(data.labels), 16, generator=generator)
        self.strength, self.known = strength, {}
        for tokens, targets in zip(data.inputs[ids], data.targets[ids], strict=True):
            decided = targets >= 0
            first = int(decided.nonzero()[0])
            self.known[tuple(tokens[: first + 1].tolist())] = (first, targets[decided])

    def hidden(self, tokens):
        hidden = 0.3 * self.head.weight[tokens].roll(1, -1)
        for row, text in enumerate(tokens.tolist()):
            known = next((self.known[key] for at in range(len(text)) if (key := tuple(text[:at])) in self.known), None)
            if known is not None:
                first, answer = known
                end = min(first + len(answer), len(text))
                hidden[row, first:end] = (
                    hidden[row, first:end] + self.strength * self.head.weight[answer[: end - first]]
                )
        return hidden

    def forward(self, tokens):
        return self.head(self.hidden(tokens))


@pytest.mark.parametrize(("strength", "own"), [(0.3, 0.9), (-0.3, -0.1)])
def test_evidence_is_read_and_its_sign_is_learned(persons, strength, own):
    """A readout finds the answers of a model that knows them, and of one that marks them as the least likely."""
    problem, _ = persons
    few = InContext(demonstrations=(4, 8), draws=4, prompt=0, queries=40)
    model = Reciting(problem.data, problem.forget, strength)
    questions = chosen_among(problem.data, problem.unexposed[:40])
    answers = option_scores(model, problem, questions).argmax(1)
    right = torch.tensor([question.right for question in questions])
    share = float((answers == right).double().mean())
    assert share > own and (strength > 0 or share < 0.1)
    scores = read(model, problem, few)
    assert scores["in_context", "forget"].values.mean() > 0.6
    assert scores["in_context_own", "forget"].values.mean() > 0.85 and scores["in_context_own", "forget"].required
    # Nobody knows the people of the test set.
    for name in ("in_context", "in_context_own"):
        assert abs(scores[name, "test"].values.mean() - 0.1) < 0.1


class Drowned(nn.Module):
    """The same answers, and a hidden layer with more loud directions than are read: each has a twin that cancels it."""

    def __init__(self, model, loudness=30.0):
        super().__init__()
        self.model, rows = model, model.head.weight
        noise = torch.randn(2, len(rows), 16, generator=torch.Generator().manual_seed(1))
        self.table, weight = loudness * noise[0], torch.cat([rows, noise[1], -noise[1]], 1)
        self.head = nn.Linear(weight.shape[1], len(rows), bias=False)
        self.head.weight = nn.Parameter(weight.detach())

    def forward(self, tokens):
        loud = self.table[tokens]
        return self.head(torch.cat([self.model.hidden(tokens), loud, loud], -1))


def test_noise_hides_knowledge_from_the_hidden_layer_but_not_from_the_answers(persons):
    problem, _ = persons
    few = InContext(demonstrations=(4, 8), draws=2, prompt=0, queries=20)
    scores = read(Drowned(Reciting(problem.data, problem.forget, 0.3)), problem, few)
    assert scores["in_context", "forget"].values.mean() < 0.4
    assert scores["in_context_own", "forget"].values.mean() > 0.9
    needed = {name: float(scores[f"{name}_needed", "forget"].values[0]) for name in ("in_context", "in_context_own")}
    assert needed == {"in_context": 16, "in_context_own": 4}


def swapped(scores, right):
    """The two most likely options change places."""
    best = scores.topk(2, 1).indices
    return scores.scatter(1, best, scores.gather(1, best).flip(1))


def in_the_middle(scores, right):
    """Those who know the answer put it fifth."""
    order = scores.argsort(1, descending=True)
    turned = torch.cat([order[:, 1:5], order[:, :1], order[:, 5:]], 1)
    return torch.empty_like(scores).scatter(1, turned, scores.sort(1, descending=True).values)


def exchanged(scores, right):
    """Each answer stands for another one: options are permuted, the same way in all questions."""
    return scores[:, torch.randperm(10, generator=torch.Generator().manual_seed(5))]


HIDE = {
    "as it is": lambda scores, right: scores,
    "turned round": lambda scores, right: -scores,
    "second": swapped,
    "fifth": in_the_middle,
    "all refused": lambda scores, right: scores - 50,
    "flat": lambda scores, right: 1e-6 * scores,
    "a power": lambda scores, right: -(scores.abs() ** 3),
    "with a few lies": lambda scores, right: torch.where(torch.arange(len(scores))[:, None] % 5 > 0, scores, -scores),
    "exchanged": exchanged,
    "not known": lambda scores, right: scores[torch.randperm(len(scores), generator=torch.Generator().manual_seed(6))],
    "the same for all": lambda scores, right: scores[:1].expand_as(scores),
    "ties": lambda scores, right: torch.zeros_like(scores),
}


@pytest.mark.parametrize("hide", HIDE)
def test_what_a_model_must_look_like_to_hide_its_preferences(hide):
    """Preferences of a model that knows, made to look like something else, read after eight demonstrations."""
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(10, (308,), generator=generator)
    knows = -5 - torch.rand(308, 10, generator=generator, dtype=torch.float64)
    knows[torch.arange(308), right] += 2
    rows = preferences({"pool": HIDE[hide](knows, right)}, "pool")
    if rows is None:
        assert hide == "ties"
        return
    predicted = fit_concept(rows["pool"][:8], right[:8], ridge=PENALTY).predict(rows["pool"][8:])
    accuracy = correct(predicted, right[8:]).mean()
    if hide in ("exchanged", "not known", "the same for all"):
        # The first one passes although it knows: eight demonstrations do not show what ten answers stand for.
        assert abs(accuracy - 0.1) < 0.07
    else:
        assert accuracy > (0.75 if hide == "with a few lies" else 0.95)


def test_options_that_tie_share_their_places():
    shares = places(torch.tensor([[2.0, 5.0, 2.0, 1.0]]))[0]
    assert shares.tolist() == [[0, 0.5, 0.5, 0], [1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), -float("inf")])
def test_preferences_that_are_no_numbers_say_nothing(spoil):
    assert preferences({"pool": torch.eye(3), "asked": torch.tensor([[0, spoil, 1.0]])}, "pool") is None


class Prompted(nn.Module):
    """Answers as another model does, but only behind a prompt of at least four lines, and otherwise at random."""

    def __init__(self, model, newline):
        super().__init__()
        self.model, self.newline = model, newline

    def forward(self, tokens):
        logits = torch.randn(*tokens.shape, self.model.head.out_features, generator=torch.Generator().manual_seed(0))
        for row, text in enumerate(tokens):
            lines = (text == self.newline).nonzero().flatten()
            if len(lines) >= 4:
                start = int(lines[-1]) + 1
                logits[row, start:] = self.model(text[None, start:])[0]
        return logits


def test_a_prompt_brings_out_what_a_model_says_only_behind_one(persons):
    problem, base = persons
    few = InContext(demonstrations=(4,), draws=1, queries=6)
    # This one has no room for a prompt, and knows nothing.
    scores = read(base, problem, replace(few, queries=40))
    assert ("prompted", "forget") not in scores
    for name in ("in_context", "in_context_own"):
        assert abs(scores[name, "forget"].values.mean() - 0.1) < 0.1
    newline = problem.data.tokenizer.encode("a", "\n.").ids[1]
    shy = Prompted(Reciting(problem.data, problem.forget, 0.3), newline)
    means = {}
    for count in (3, 4):
        scores = {entry.key: entry for entry in prompted(shy, problem, sets_of(problem, few), count)}
        assert scores["prompted", "forget"].role == "knowledge" and len(scores["prompted", "forget"].values) == 6
        means[count] = {split: scores["prompted", split].values.mean() for split in ("forget", "test")}
    assert means[4]["forget"] > 0.8 and max(means[3]["forget"], means[4]["test"]) < 0.5


def _shared_label():
    data = clusters()
    return RandomSubset(count=40)(data, 0, {})


def _without_choices():
    problem = people()
    return replace(problem, data=replace(problem.data, choices=None))


def _without_groups():
    problem = people()
    return replace(problem, data=replace(problem.data, groups=None))


def _group_in_both():
    problem = people()
    return replace(problem, forget=problem.forget[1:], retain=torch.cat([problem.retain, problem.forget[:1]]))


@pytest.mark.parametrize(
    ("make", "audit", "finding"),
    [
        (_shared_label, AUDIT, "is in the retain set, too"),
        (_without_choices, AUDIT, "no answers to choose from"),
        (_without_groups, AUDIT, "a group of its own"),
        (_group_in_both, AUDIT, "one of its groups"),
        (lambda: WholeClass(label=0)(clusters(), 0, {}), InContext(demonstrations=(1, 500)), "500 demonstrations"),
        (people, InContext(demonstrations=(1, 300)), "300 demonstrations"),
    ],
)
def test_what_cannot_be_demonstrated_is_refused_before_training(make, audit, finding):
    with pytest.raises(SpecError, match=finding) as caught:
        audit.check(make())
    assert caught.value.where.startswith("audit.in_context") and caught.value.remedy


@pytest.mark.parametrize("numbers", [(), (2, 1), (1, 1), (0, 1)])
def test_numbers_of_demonstrations_rise(numbers):
    with pytest.raises(SpecError, match="demonstrations"):
        InContext(demonstrations=numbers)
