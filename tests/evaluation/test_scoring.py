"""Tests of verdicts, intervals, ELO and the figures' numbers."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.evaluation import scoring

VERDICTS = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40)


def test_win_lose_tie_by_hand():
    verdicts = scoring.win_lose_tie([1.0, 0.2, 0.5, 0.5], [0.5, 0.7, 0.5, 0.4], tie_margin=0.15)
    np.testing.assert_array_equal(verdicts, [1, -1, 0, 0])
    np.testing.assert_array_equal(scoring.win_lose_tie([0.5, 0.5], [0.4, 0.5]), [1, 0])


@pytest.mark.parametrize(
    ("a", "b", "margin", "message"),
    [
        ([1.0], [1.0, 2.0], 0, "got 1 and 2"),
        ([], [], 0, "scores_a: expected one score a prompt"),
        ([[1.0]], [[1.0]], 0, "scores_a: expected one score a prompt"),
        ([1.0], [math.nan], 0, "scores_b: expected finite scores, got nan at index 0"),
        ([1.0], [1.0], -1, "tie_margin: expected 0 or more, got -1"),
    ],
)
def test_win_lose_tie_rejects(a, b, margin, message):
    with pytest.raises(ValueError, match=message):
        scoring.win_lose_tie(a, b, margin)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1))
def test_reward_judge_outcomes_follow_the_paper(pairs):
    expected = []
    for r1, r2 in pairs:
        probability = 1 / (1 + math.exp(r2 - r1))
        if min(abs(probability - 0.45), abs(probability - 0.55)) < 1e-9:
            return  # on the bound itself, rounding decides
        expected.append(0 if 0.45 <= probability <= 0.55 else 1 if r1 > r2 else -1)
    r1, r2 = np.array(pairs).T
    np.testing.assert_array_equal(scoring.reward_judge_outcomes(r1, r2), expected)


def test_compare_by_hand():
    result = scoring.compare([1, 1, 1, 0, -1, 0, 0, 0], seed=3)
    assert (result.win, result.lose, result.tie, result.delta) == (37.5, 12.5, 50.0, 25.0)
    assert result.n == 8
    assert result.ci_low < 25 < result.ci_high
    assert result == scoring.compare([1, 1, 1, 0, -1, 0, 0, 0], seed=3)


def test_compare_interval_against_resampled_indices():
    outcomes = np.random.default_rng(0).choice([1, 0, -1], size=120, p=[0.5, 0.3, 0.2])
    rng = np.random.default_rng(1)
    deltas = [100 * outcomes[rng.integers(120, size=120)].mean() for _ in range(4000)]
    result = scoring.compare(outcomes)
    np.testing.assert_allclose(
        [result.ci_low, result.ci_high], np.percentile(deltas, [2.5, 97.5]), atol=1.7
    )


@given(VERDICTS)
def test_compare_is_antisymmetric_and_bounded(verdicts):
    forward = scoring.compare(verdicts, resamples=200)
    backward = scoring.compare([-v for v in verdicts], resamples=200)
    assert forward.win + forward.lose + forward.tie == pytest.approx(100)
    assert forward.delta == -backward.delta and forward.win == backward.lose
    assert -100 <= forward.ci_low <= forward.ci_high <= 100


def test_compare_rejects():
    with pytest.raises(ValueError, match="expected one verdict a prompt"):
        scoring.compare([])
    with pytest.raises(ValueError, match=r"expected -1, 0 and 1, got \[2\]"):
        scoring.compare([2])


def test_mean_interval_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    result = scoring.mean_interval(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert result.mean == pytest.approx(values.mean()) and result.n == 400
    assert result.ci_low == pytest.approx(values.mean() - half, abs=0.03)
    assert result.ci_high == pytest.approx(values.mean() + half, abs=0.03)


def test_mean_interval_does_not_depend_on_the_chunk(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = scoring.mean_interval(values, resamples=500)
    monkeypatch.setattr(scoring, "_CHUNK_ELEMENTS", 777)
    assert scoring.mean_interval(values, resamples=500) == whole


def test_agreement_by_hand():
    # 8 of 10; Wilson's interval for it is tabulated as 0.490 to 0.943.
    result = scoring.agreement([1] * 8 + [0, -1])
    assert result.accuracy == 0.8 and result.n == 10
    assert (result.ci_low, result.ci_high) == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_agreement_interval_keeps_its_width_at_the_ends():
    every, none = scoring.agreement([1] * 128), scoring.agreement([-1] * 128)
    # At the ends Wilson's interval is 1 / (1 + z^2 / n) and its complement.
    bound = 1 / (1 + 1.959963984540054**2 / 128)
    assert (every.ci_low, every.ci_high) == pytest.approx((bound, 1.0))
    assert (none.ci_low, none.ci_high) == pytest.approx((0.0, 1 - bound))


@given(st.integers(1, 600), st.data())
def test_agreement_interval_is_wilsons(n, data):
    agreed = data.draw(st.integers(0, n))
    result = scoring.agreement([1] * agreed + [-1] * (n - agreed))
    # The shares p from which the one observed is z standard errors sqrt(p (1 - p) / n) away.
    z = 1.959963984540054
    root = z * math.sqrt(z * z + 4 * agreed * (n - agreed) / n)
    expected = [(2 * agreed + z * z + sign * root) / (2 * (n + z * z)) for sign in (-1, 1)]
    assert [result.ci_low, result.ci_high] == pytest.approx(expected, rel=0, abs=1e-12)


def test_gap_reward_summary_by_hand():
    rewards = {
        "wl": np.array([4.0, 3.0, -2.0, 5.0]),
        "ww": np.array([1.0, 3.0, -1.0, 0.0]),
        "ll": np.array([0.0, 1.0, -1.5, 6.0]),
        "lw": np.array([-3.0, 2.0, -2.5, -1.0]),
    }
    summary = scoring.gap_reward_summary(rewards)
    assert summary["accuracy"] == 1.0 and summary["n"] == 4
    assert summary["inequalities"] == {
        "wl>ww": 0.5,  # 4>1, 3=3 isn't, -2<-1, 5>0
        "wl>ll": 0.5,
        "wl>lw": 1.0,
        "ww>lw": 1.0,
        "ll>lw": 0.75,
    }
    assert summary["means"] == {"wl": 2.5, "ww": 0.75, "ll": 1.375, "lw": -1.125}
    with pytest.raises(ValueError, match="missing ll, lw"):
        scoring.gap_reward_summary({"wl": rewards["wl"], "ww": rewards["ww"]})


def _elo_one_at_a_time(matches, players, k=4.0):
    ratings = [1000.0] * players
    for a, b, verdict in matches:
        expected = 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400))
        change = k * ((verdict + 1) / 2 - expected)
        ratings[a] += change
        ratings[b] -= change
    return ratings


def test_elo_of_one_match_by_hand():
    elo = scoring.elo_ratings([[0, 1]], [[1]], shuffles=3)
    np.testing.assert_allclose(elo.rating, [1002, 998])
    np.testing.assert_allclose(elo.low, [1002, 998])
    np.testing.assert_array_equal(elo.rank, [1, 2])


def test_elo_against_matches_played_one_at_a_time():
    scores = np.random.default_rng(2).normal(size=(3, 30)) + np.array([[0.0], [0.4], [1.0]])
    pairs, outcomes = scoring.pairwise_outcomes(scores)
    np.testing.assert_array_equal(pairs, [[0, 1], [0, 2], [1, 2]])
    elo = scoring.elo_ratings(pairs, outcomes, shuffles=200)

    matches = [(a, b, v) for (a, b), row in zip(pairs, outcomes, strict=True) for v in row]
    shuffler, runs = random.Random(0), []
    for _ in range(400):
        shuffler.shuffle(matches)
        runs.append(_elo_one_at_a_time(matches, 3))
    np.testing.assert_allclose(elo.rating, np.mean(runs, axis=0), atol=0.6)
    np.testing.assert_array_equal(elo.rank, [3, 2, 1])
    assert (elo.low <= elo.rating).all() and (elo.rating <= elo.high).all()
    # Prompts are resampled too, so the interval is wider than that of the order alone.
    order_low, order_high = np.percentile(runs, [2.5, 97.5], axis=0)
    assert ((elo.high - elo.low) > (order_high - order_low)).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(1, 8), st.integers(0, 2**31))
def test_elo_conserves_points_and_is_seeded(models, prompts, seed):
    scores = np.random.default_rng(seed).integers(3, size=(models, prompts))
    pairs, outcomes = scoring.pairwise_outcomes(scores, scoring.reward_judge_outcomes)
    elo = scoring.elo_ratings(pairs, outcomes, shuffles=5, seed=seed)
    assert elo.rating.mean() == pytest.approx(1000)
    np.testing.assert_array_equal(
        elo.rating, scoring.elo_ratings(pairs, outcomes, shuffles=5, seed=seed).rating
    )


def test_elo_rejects():
    with pytest.raises(ValueError, match="2 or more models"):
        scoring.pairwise_outcomes(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"pairs \[Q, 2\] and outcomes \[Q, N\]"):
        scoring.elo_ratings([[0, 1]], [1, 0])
    with pytest.raises(ValueError, match="at least one comparison"):
        scoring.elo_ratings(np.zeros((1, 2), int), np.zeros((1, 0), int))


def test_density_histograms_share_bins_and_integrate_to_one():
    edges, densities = scoring.density_histograms({"a": [0.0, 1.0, 1.0], "b": [3.0, 4.0]}, bins=4)
    np.testing.assert_allclose(edges, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(densities["a"], [1 / 3, 2 / 3, 0, 0])
    np.testing.assert_allclose(densities["b"], [0, 0, 0, 1])
    with pytest.raises(ValueError, match="at least one series"):
        scoring.density_histograms({})


def test_reward_regions_by_hand():
    regions = scoring.reward_regions({"wl": 4.0, "ww": 0.0, "ll": -1.0, "lw": -5.0})
    assert regions == (-3.0, 2.0)
    assert [scoring.region_of(r, regions) for r in (-3.1, -3.0, 2.0, 2.1)] == [
        "worse",
        "similar",
        "similar",
        "better",
    ]
    assert scoring.reward_regions({"wl": 4.0, "ww": 5.0, "ll": 0.0, "lw": -1.0}) is None
    assert scoring.reward_regions({"wl": 4.0, "ww": 1.0, "ll": 0.0, "lw": 0.0}) is None
