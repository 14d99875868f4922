"""Concept regression against NumPy's least squares, its law on models that satisfy the assumptions, and its bounds."""

import math

import numpy as np
import pytest
import torch

from expunge.base.errors import SpecError
from expunge.numerics.concept_regression import (
    Normalisation,
    coverage,
    fit_concept,
    knowledge_share,
    risk,
)
from expunge.numerics.demonstrations import diverse, greedy, greedy_by_inverse, nearest
from expunge.numerics.label_regression import Whitening, fit_labels, label_embeddings

M, K = 4, 7


def embeddings(n, generator, options=M, width=K):
    raw = torch.randn(n, options, width - 1, generator=generator, dtype=torch.float64)
    return Normalisation(torch.eye(width - 1, dtype=torch.float64), torch.ones(width - 1, dtype=torch.float64))(raw)


def complete(n, generator, strength=0.02):
    """Questions whose probabilities are linear in the embedding, with a concept that keeps them positive."""
    weights = torch.full((K,), strength, dtype=torch.float64)
    weights[-1] = 1 / math.sqrt(M)
    rows = embeddings(n, generator)
    true = rows @ weights
    assert (true > 0).all()
    return rows, true


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_is_the_least_squares_of_smallest_norm(n):
    generator = torch.Generator().manual_seed(n)
    rows, answers = embeddings(n, generator), torch.randint(M, (n,), generator=generator)
    right = np.eye(M)[answers.numpy()].ravel()
    wanted = np.linalg.lstsq(rows.flatten(0, 1).numpy(), right, rcond=1e-10)[0]
    concept = fit_concept(rows, answers)
    assert np.abs(concept.weights.numpy() - wanted).max() < 1e-10
    assert float(concept.weights[-1]) == 1 / math.sqrt(M)
    moments = rows[torch.arange(n), answers].mean(0)
    assert torch.allclose(torch.linalg.pinv(concept.gram, rtol=1e-10) @ moments, concept.weights, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_predictions_sum_to_one_and_turn_with_the_embedding(ridge):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(12, M, 9, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    answers = torch.randint(M, (8,), generator=generator)
    predicted = []
    for pool in (raw, raw @ turn):
        rows = Normalisation.fit(pool)(pool)
        predicted.append(fit_concept(rows[:8], answers, ridge=ridge).predict(rows[8:]))
    assert torch.allclose(predicted[0], predicted[1], atol=1e-10)
    assert torch.allclose(predicted[0].sum(1), torch.ones(4, dtype=torch.float64), atol=1e-12)


def test_ridge_solves_the_penalised_normal_equations():
    generator = torch.Generator().manual_seed(0)
    rows, answers = embeddings(5, generator), torch.randint(M, (5,), generator=generator)
    concept = fit_concept(rows, answers, ridge=0.2)
    penalty = 0.2 * torch.eye(K, dtype=torch.float64)
    penalty[-1, -1] = 0
    moments = rows[torch.arange(5), answers].mean(0)
    assert torch.allclose(torch.linalg.solve(concept.gram + penalty, moments), concept.weights, atol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("n", [4, 40])
def test_labels_as_options_are_one_regression_each(n, ridge):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    answers = torch.randint(3, (n,), generator=generator)
    raw = label_embeddings(features, 3)
    plain = Normalisation(torch.eye(15, dtype=torch.float64), torch.ones(15, dtype=torch.float64))(raw)
    predicted = fit_concept(plain, answers, ridge=ridge).predict(plain)
    assert torch.allclose(fit_labels(features, answers, 3, ridge=ridge).predict(features), predicted, atol=1e-10)


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e3])
def test_whitening_undoes_any_mixing_of_features(factor):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    mix[:, 0] *= factor
    white, again = (Whitening.fit(rows)(rows) for rows in (features, features @ mix + 3))
    moments = white.T @ white / 50
    assert torch.allclose(moments, torch.eye(5, dtype=torch.float64), atol=1e-9)
    # The same up to a rotation, which no prediction depends on.
    assert torch.allclose(white @ white.T, again @ again.T, atol=1e-6)


def test_normalisation_scales_the_pool_to_one_and_a_column_by_any_factor_away():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(30, M, 5, generator=generator)
    rows = Normalisation.fit(raw)(raw)
    assert torch.allclose(rows[..., :-1].square().mean((0, 1)), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(rows[..., :-1].sum(1), torch.zeros(30, 5, dtype=torch.float64), atol=1e-12)
    assert (rows[..., -1] == 1 / math.sqrt(M)).all()
    # A model that hides a direction by a tiny factor gains nothing: the factor is divided out.
    hidden = Normalisation.fit(raw * torch.tensor([1, 1, 1e-3, 1, 1]))(raw * torch.tensor([1, 1, 1e-3, 1, 1]))
    answers = torch.randint(M, (20,), generator=generator)
    predictions = [fit_concept(r[:20], answers).predict(r[20:]) for r in (rows, hidden)]
    assert torch.allclose(*predictions, atol=1e-5)


def test_unbiased_and_below_the_bounds_over_a_thousand_draws():
    """Complete and sufficient: the mean error of 1,000 draws of the answers stays below both bounds, query by query."""
    generator = torch.Generator().manual_seed(0)
    draws, n = 1000, 24
    rows, true = complete(n, generator)
    queries, wanted = complete(50, generator)
    errors, weights = [], []
    for _ in range(draws):
        concept = fit_concept(rows, torch.multinomial(true, 1, generator=generator)[:, 0])
        errors.append(risk(concept.predict(queries), wanted))
        weights.append(concept.weights)
    bounds = coverage(concept, queries)
    mean = torch.stack(errors).mean(0)
    assert (mean < bounds.trace).all() and (bounds.trace <= bounds.spectral + 1e-12).all()
    assert (mean > 0.02 * bounds.trace).all()
    assert (bounds.similarity >= 1 - 1e-9).all()
    # With fresh questions in each draw, too.
    excess = []
    for _ in range(draws):
        fresh, chances = complete(n, generator)
        concept = fit_concept(fresh, torch.multinomial(chances, 1, generator=generator)[:, 0])
        excess.append(float((risk(concept.predict(queries), wanted) - coverage(concept, queries).trace).mean()))
    assert np.mean(excess) < 0
    spread = torch.stack(weights).std(0) / math.sqrt(draws)
    planted = torch.full((K,), 0.02, dtype=torch.float64)
    assert ((torch.stack(weights).mean(0) - planted)[:-1].abs() < 5 * spread[:-1]).all()


def test_similarity_is_one_exactly_if_the_demonstrations_dominate():
    generator = torch.Generator().manual_seed(0)
    rows = embeddings(60, generator)
    concept = fit_concept(rows, torch.zeros(60, dtype=torch.int64))
    inside = rows[:1].clone()
    inside[..., :-1] *= 1e-3
    assert float(coverage(concept, inside).similarity) == pytest.approx(1, abs=1e-9)
    matrix = rows[0].T @ rows[0] @ torch.linalg.inv(concept.gram)
    wanted = torch.linalg.eigvals(matrix).real.max()
    assert float(coverage(concept, rows[:1]).similarity) == pytest.approx(float(wanted))
    assert float(coverage(concept, rows[:1]).trace) == pytest.approx(float(matrix.trace()) / 60)


def test_too_few_demonstrations_leave_part_of_a_query_outside():
    generator = torch.Generator().manual_seed(0)
    rows = embeddings(40, generator)
    few, many = (coverage(fit_concept(rows[:n], torch.zeros(n, dtype=torch.int64)), rows[30:]) for n in (1, 30))
    assert (few.outside > 0.05).all() and (many.outside < 1e-9).all()


def test_knowledge_share_is_one_for_answers_in_the_embedding_and_none_for_noise():
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(M, (400,), generator=generator)
    revealing = torch.nn.functional.one_hot(answers, M).double()[..., None]
    noise = torch.randn(400, M, 5, generator=generator, dtype=torch.float64)
    both, without = (Normalisation.fit(raw)(raw) for raw in (torch.cat([revealing, noise], -1), noise))
    assert knowledge_share(both, answers) == pytest.approx(1, abs=1e-9)
    assert -0.05 < knowledge_share(without, answers) < 0.02


@pytest.mark.parametrize(("n", "options", "width", "queries"), [(40, 4, 9, 5), (25, 2, 12, 1), (30, 10, 4, 40)])
def test_greedy_choice_equals_recomputing_each_inverse(n, options, width, queries):
    generator = torch.Generator().manual_seed(n)
    rows, wanted = embeddings(n, generator, options, width), embeddings(queries, generator, options, width)
    assert greedy(rows, wanted, 12) == greedy_by_inverse(rows, wanted, 12)
    assert sorted(greedy(rows, wanted, n)) == list(range(n))


def test_greedy_lowers_the_bound_below_other_choices():
    generator = torch.Generator().manual_seed(0)
    rows = embeddings(200, generator)
    # Queries in a part of the space that few candidates cover.
    wanted = embeddings(20, generator)
    wanted[..., :3] *= 4
    zeros = torch.zeros(12, dtype=torch.int64)

    def bound(order):
        return float(coverage(fit_concept(rows[order], zeros), wanted).trace.mean())

    chosen = bound(greedy(rows, wanted, 12))
    others = [bound(torch.randperm(200, generator=generator)[:12]) for _ in range(50)]
    assert chosen < min(others)
    assert chosen < bound(nearest(rows, wanted, 12)) and chosen < bound(diverse(rows, 12))
    assert len(set(diverse(rows, 200))) == 200 and len(set(nearest(rows, wanted, 200))) == 200


FINE, ANSWERS = torch.randn(5, M, K, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize(
    ("call", "where", "finding"),
    [
        (lambda: fit_concept(FINE[:0], ANSWERS[:0]), "embeddings", "no demonstration"),
        (lambda: fit_concept(FINE, ANSWERS + 1), "answers", "answer 4 is not among the 4 options"),
        (lambda: fit_concept(FINE, ANSWERS - 1), "answers", "answer -1"),
        (lambda: fit_concept(FINE, ANSWERS.float()), "answers", "float32"),
        (lambda: fit_concept(FINE, ANSWERS[:4]), "answers", "for 5 demonstrations"),
        (lambda: fit_concept(FINE[:, :1], ANSWERS), "embeddings", "[5, 1, 7]"),
        (lambda: fit_concept(FINE / 0, ANSWERS), "embeddings", "not finite"),
        (lambda: fit_concept(FINE, ANSWERS, ridge=-1), "ridge", "-1"),
        (lambda: fit_concept(FINE, ANSWERS, ridge=math.nan), "ridge", "nan"),
        (lambda: Normalisation.fit(FINE * 0), "embeddings", "zero variance"),
        (lambda: Normalisation.fit(FINE[:, :1].expand(-1, 4, -1)), "embeddings", "zero variance"),
        (lambda: Normalisation.fit(FINE[:0]), "embeddings", "zero variance"),
        (lambda: fit_labels(FINE[0, :0], ANSWERS[:0], 4), "features", "no demonstration"),
        (lambda: fit_labels(FINE[:, 0], ANSWERS, 3), "answers", "answer 3"),
        (lambda: fit_labels(FINE[:, 0] / 0, ANSWERS, 4), "features", "not finite"),
        (lambda: fit_labels(FINE, ANSWERS, 4), "features", "[5, 4, 7]"),
        (lambda: Whitening.fit(FINE[:1, 0].expand(9, -1)), "features", "zero variance"),
        (lambda: knowledge_share(FINE[:1], ANSWERS[:1]), "embeddings", "one question"),
        (lambda: greedy(FINE, FINE, 6), "count", "6"),
        (lambda: greedy(FINE, FINE, 0), "count", "0"),
        (lambda: greedy(FINE[:0], FINE, 1), "candidates", "[0, 4, 7]"),
        (lambda: greedy(FINE, FINE[:0], 1), "queries", "[0, 4, 7]"),
        (lambda: greedy(FINE, FINE[..., :3], 1), "queries", "[5, 4, 3]"),
        (lambda: greedy(FINE, FINE, 2, ridge=0), "ridge", "0"),
        (lambda: nearest(FINE, FINE, 9), "count", "9"),
        (lambda: diverse(FINE, 9), "count", "9"),
    ],
)
def test_bad_input_is_named(call, where, finding):
    with pytest.raises(SpecError) as caught:
        call()
    assert caught.value.where == where
    assert finding in str(caught.value) and caught.value.allowed
