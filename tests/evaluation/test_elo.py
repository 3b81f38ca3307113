"""Tests of ELO ratings and their intervals."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.evaluation import scoring
from pit_jax.evaluation.elo import elo_ratings, split_variance


def _elo_one_at_a_time(matches, players, k=4.0):
    ratings = [1000.0] * players
    for a, b, verdict in matches:
        expected = 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400))
        change = k * ((verdict + 1) / 2 - expected)
        ratings[a] += change
        ratings[b] -= change
    return ratings


def test_elo_of_one_match_by_hand():
    elo = elo_ratings([[0, 1]], [[1]], shuffles=3)
    np.testing.assert_allclose(elo.rating, [1002, 998])
    np.testing.assert_array_equal(elo.rank, [1, 2])
    np.testing.assert_allclose(elo_ratings([[0, 1]], [[0]]).rating, [1000, 1000])  # a tie
    # One match tells nothing of others; nor do the same verdicts on every prompt.
    assert np.isnan([elo.low, elo.high]).all()
    elo = elo_ratings([[0, 1]], [[1] * 40], shuffles=3)
    assert np.isnan([elo.low, elo.high]).all() and elo.rating[0] > 1002


def _outcomes(scores, verdicts):
    return scoring.pairwise_outcomes(len(scores), lambda a, b: verdicts(scores[a], scores[b]))


def test_elo_against_matches_played_one_at_a_time():
    scores = np.random.default_rng(2).normal(size=(3, 30)) + np.array([[0.0], [0.4], [1.0]])
    pairs, outcomes = _outcomes(scores, scoring.win_lose_tie)
    np.testing.assert_array_equal(pairs, [[0, 1], [0, 2], [1, 2]])
    elo = elo_ratings(pairs, outcomes, shuffles=200)

    matches = [(a, b, v) for (a, b), row in zip(pairs, outcomes, strict=True) for v in row]
    shuffler, runs = random.Random(0), []
    for _ in range(400):
        shuffler.shuffle(matches)
        runs.append(_elo_one_at_a_time(matches, 3))
    np.testing.assert_allclose(elo.rating, np.mean(runs, axis=0), atol=0.6)
    np.testing.assert_array_equal(elo.rank, [3, 2, 1])
    assert (elo.low <= elo.rating).all() and (elo.rating <= elo.high).all()


def test_orders_are_those_of_the_seed():
    """The matches by number, shuffled by the same generator and played one at a time."""
    pairs, outcomes = np.array([[0, 1], [2, 0], [1, 2]]), np.array([[1, 0], [-1, 1], [0, -1]])
    flat = [(a, b, v) for (a, b), row in zip(pairs, outcomes, strict=True) for v in row]
    rng, runs = np.random.default_rng(7), []
    for _ in range(9):
        order = np.arange(6)
        rng.shuffle(order)
        runs.append(_elo_one_at_a_time([flat[i] for i in order], 3, k=40.0))
    found = elo_ratings(pairs, outcomes, shuffles=9, seed=7, k=40.0)
    np.testing.assert_allclose(found.rating, np.mean(runs, axis=0), rtol=1e-12)


def test_interval_is_that_of_the_mean_over_orders():
    """Against the standard deviation of ratings that are each a mean over as many orders."""
    outcomes = np.repeat([1, -1, 0], [20, 12, 8])
    elo = elo_ratings([[0, 1]], outcomes[None], shuffles=25, k=64.0)
    shuffler, means, singles = random.Random(0), [], []
    for _ in range(400):
        matches = [(0, 1, v) for v in shuffler.choices(outcomes.tolist(), k=40)]
        runs = []
        for _ in range(25):
            shuffler.shuffle(matches)
            runs.append(_elo_one_at_a_time(matches, 2, k=64.0)[0])
        means.append(np.mean(runs))
        singles.append(runs[0])
    half = (elo.high - elo.low)[0] / 2
    assert half == pytest.approx(1.96 * np.std(means), rel=0.2)
    assert half < 0.7 * 1.96 * np.std(singles)  # the interval of one order is wider


def test_interval_counts_rows_of_a_prompt_as_one():
    outcomes = np.random.default_rng(0).choice([1, 0, -1], size=(1, 40))
    shared = elo_ratings([[0, 1]], np.repeat(outcomes, 8, axis=1), np.repeat(np.arange(40), 8))
    apart = elo_ratings([[0, 1]], np.repeat(outcomes, 8, axis=1))
    np.testing.assert_array_equal(shared.rating, apart.rating)
    # Eight copies say no more than one: wider by the root of eight.
    ratio = (shared.high - shared.low) / (apart.high - apart.low)
    np.testing.assert_allclose(ratio, np.sqrt(8), rtol=0.15)


def test_split_variance_is_unbiased():
    rng = np.random.default_rng(0)
    values = 3 * rng.normal(size=(40_000, 1, 1)) + 2 * rng.normal(size=(40_000, 4, 1))
    within, between = split_variance(values)
    assert within[0] == pytest.approx(4, rel=0.02) and between[0] == pytest.approx(9, rel=0.02)
    # By hand: variances 2 and 0; means 1 and 5, of variance 8, less 1 / 2.
    within, between = split_variance(np.array([[[0.0], [2.0]], [[5.0], [5.0]]]))
    assert (within[0], between[0]) == (1, 7.5)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(1, 8), st.integers(0, 2**31))
def test_elo_conserves_points_and_is_seeded(models, prompts, seed):
    scores = np.random.default_rng(seed).integers(3, size=(models, prompts))
    pairs, outcomes = _outcomes(scores, scoring.reward_judge_outcomes)
    elo = elo_ratings(pairs, outcomes, shuffles=5, seed=seed)
    assert elo.rating.mean() == pytest.approx(1000)
    np.testing.assert_array_equal(
        elo.rating, elo_ratings(pairs, outcomes, shuffles=5, seed=seed).rating
    )


def test_elo_rejects():
    with pytest.raises(ValueError, match=r"pairs \[Q, 2\] and outcomes \[Q, N\]"):
        elo_ratings([[0, 1]], [1, 0])
    with pytest.raises(ValueError, match="at least one comparison"):
        elo_ratings(np.zeros((1, 2), int), np.zeros((1, 0), int))


def test_seed_moves_orders_and_resamples():
    outcomes = np.random.default_rng(0).choice([1, 0, -1], size=(1, 60))
    found = [elo_ratings([[0, 1]], outcomes, shuffles=3, resamples=50, seed=s) for s in (0, 1, 0)]
    for field in ("rating", "low", "high"):
        one, other, again = (getattr(each, field) for each in found)
        np.testing.assert_array_equal(one, again)
        assert (one != other).all(), field
