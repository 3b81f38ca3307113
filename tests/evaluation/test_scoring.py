"""Tests of verdicts, intervals, ELO and the figures' numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.evaluation import intervals, scoring
from pit_jax.method import losses

VERDICTS = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40)


def test_win_lose_tie_by_hand():
    verdicts = scoring.win_lose_tie([1.0, 0.2, 0.5, 0.5], [0.5, 0.7, 0.5, 0.4], tie_margin=0.15)
    np.testing.assert_array_equal(verdicts, [1, -1, 0, 0])
    np.testing.assert_array_equal(scoring.win_lose_tie([0.5, 0.5], [0.4, 0.5]), [1, 0])


def test_a_difference_of_exactly_the_margin_is_a_tie():
    verdicts = scoring.win_lose_tie([1.5, 0.5, 1.75], [1.0, 1.0, 1.0], tie_margin=0.5)
    np.testing.assert_array_equal(verdicts, [0, 0, 1])


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


def test_compare_of_rows_by_themselves_is_one_multinomial_draw():
    outcomes = np.repeat([1, -1, 0], [60, 40, 20])
    draws = np.random.default_rng(7).multinomial(120, [60 / 120, 40 / 120, 20 / 120], size=500)
    low, high = np.percentile(100.0 * (draws[:, 0] - draws[:, 1]) / 120, (2.5, 97.5))
    for groups in (None, [None] * 120, [f"prompt {i}" for i in range(120)]):
        result = scoring.compare(outcomes, groups, seed=7, resamples=500)
        assert (result.ci_low, result.ci_high) == (low, high)


def test_compare_counts_rows_of_a_prompt_as_one():
    outcomes = np.random.default_rng(0).choice([1, 0, -1], size=60, p=[0.5, 0.3, 0.2])
    alone = scoring.compare(outcomes)
    copies = scoring.compare(np.repeat(outcomes, 8), np.repeat(np.arange(60), 8).tolist())
    assert (copies.delta, copies.n) == (pytest.approx(alone.delta), 480)
    assert copies.ci_low == pytest.approx(alone.ci_low, abs=1.7)
    assert copies.ci_high == pytest.approx(alone.ci_high, abs=1.7)


def test_compare_of_eight_wins_of_eight():
    # The win rate is at least a where a^8 = 0.025, and all else may be losses.
    result = scoring.compare([1] * 8)
    assert result.ci_low == pytest.approx(100 * (2 * 0.025 ** (1 / 8) - 1))
    assert result.ci_high == 100
    # Ties all the way, and 600 of them, say that wins are at most 1 - a and so are losses.
    ties = scoring.compare([0] * 600)
    bound = 100 * (1 - 0.025 ** (1 / 600))
    assert (ties.ci_low, ties.ci_high) == pytest.approx((-bound, bound))


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
    monkeypatch.setattr(intervals, "_CHUNK_ELEMENTS", 777)
    assert scoring.mean_interval(values, resamples=500) == whole


def test_mean_interval_of_rows_by_themselves_resamples_indices():
    values = np.random.default_rng(0).random(50)
    drawn = np.random.default_rng(5).integers(50, size=(500, 50))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    for groups in (None, [f"prompt {i}" for i in range(50)]):
        result = scoring.mean_interval(values, groups, seed=5, resamples=500)
        assert (result.ci_low, result.ci_high) == (low, high)


def test_mean_interval_counts_rows_of_a_prompt_as_one():
    """Each end is 0.975 of the way from the mean to its bound."""
    mean = scoring.mean_interval([1.0, 0.0, 1.0, 1.0], ["the same"] * 4, (0.0, 1.0))
    assert (mean.mean, mean.n) == (0.75, 4)
    assert mean.ci_low == pytest.approx(0.025 * 0.75)
    assert mean.ci_high == pytest.approx(0.75 + 0.975 * 0.25)


def test_mean_interval_of_equal_values():
    # A share of 1 - a of the scores may be 0; without bounds they may be anything.
    result = scoring.mean_interval([1.0] * 8, bounds=(0, 1))
    assert (result.ci_low, result.ci_high) == (pytest.approx(0.025 ** (1 / 8)), 1)
    result = scoring.mean_interval([1.0] * 8)
    assert math.isnan(result.ci_low) and math.isnan(result.ci_high)


def test_agreement_by_hand():
    # 8 of 10; the interval of Clopper and Pearson for it is tabulated as 0.444 to 0.975.
    result = scoring.agreement([1] * 8 + [0, -1])
    assert result.accuracy == 0.8 and result.n == 10
    assert (result.ci_low, result.ci_high) == pytest.approx((0.4439, 0.9748), abs=5e-5)


def test_agreement_interval_keeps_its_width_at_the_ends():
    every, none = scoring.agreement([1] * 128), scoring.agreement([-1] * 128)
    # The share from which 128 of 128 have a probability of 0.025, and its complement.
    bound = 0.025 ** (1 / 128)
    assert (every.ci_low, every.ci_high) == pytest.approx((bound, 1.0))
    assert (none.ci_low, none.ci_high) == pytest.approx((0.0, 1 - bound))


def test_agreement_counts_pairs_of_a_prompt_as_one():
    outcomes = np.repeat([1, -1], [90, 38])
    alone = scoring.agreement(outcomes)
    assert alone == scoring.agreement(outcomes, [f"prompt {i}" for i in range(128)])
    copies = scoring.agreement(np.repeat(outcomes, 8), np.repeat(np.arange(128), 8).tolist())
    assert (copies.ci_low, copies.ci_high) == pytest.approx((alone.ci_low, alone.ci_high), abs=0.02)
    rewards = {pair: np.zeros(1024) for pair in scoring.GAP_PAIRS}
    rewards["wl"] = np.repeat(outcomes, 8)
    summary = scoring.gap_reward_summary(rewards, np.repeat(np.arange(128), 8).tolist())
    assert (summary["ci_low"], summary["ci_high"]) == (copies.ci_low, copies.ci_high)


@given(st.integers(32, 600), st.data())
def test_agreement_interval_is_wilsons_where_both_verdicts_are_many(n, data):
    agreed = data.draw(st.integers(16, n - 16))
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


def test_a_difference_of_two_rewards_by_hand():
    """R_P gives y_w 3 and y_l 1, then 0.5 and 2: the second pair is ranked wrongly, and wholly."""
    rewards = scoring.difference_rewards([3.0, 0.5], [1.0, 2.0])
    assert {pair: values.tolist() for pair, values in rewards.items()} == {
        "wl": [2.0, -1.5],
        "ww": [0.0, 0.0],
        "ll": [0.0, 0.0],
        "lw": [-2.0, 1.5],
    }
    summary = scoring.gap_reward_summary(rewards)
    assert summary["accuracy"] == 0.5 and set(summary["inequalities"].values()) == {0.5}
    assert summary["means"] == {"wl": 0.25, "ww": 0.0, "ll": 0.0, "lw": -0.25}
    moved, spread = losses.reference_moves_score(rewards)
    assert moved == spread == 2 + 2 + 1.5 + 1.5


def test_pairwise_outcomes_are_for_the_first_of_each_pair():
    scores = [[1.0, 0.0], [0.5, 0.0], [2.0, -1.0]]
    pairs, verdicts = scoring.pairwise_outcomes(
        3, lambda a, b: scoring.win_lose_tie(scores[a], scores[b])
    )
    np.testing.assert_array_equal(pairs, [[0, 1], [0, 2], [1, 2]])
    np.testing.assert_array_equal(verdicts, [[1, 0], [-1, 1], [-1, 1]])


def test_pairwise_outcomes_reject():
    with pytest.raises(ValueError, match="2 or more models"):
        scoring.pairwise_outcomes(1, lambda a, b: np.zeros(4))


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


def test_seed_moves_the_resamples_of_every_interval():
    """Of verdicts one by one or by prompt, and of means; a closed form has none to move."""
    rng = np.random.default_rng(0)
    verdicts, values = rng.choice([1, 0, -1], size=200), rng.normal(size=200)
    groups = [i // 2 for i in range(200)]
    for make in (
        lambda seed: scoring.compare(verdicts, seed=seed),
        lambda seed: scoring.compare(verdicts, groups, seed),
        lambda seed: scoring.mean_interval(values, groups, None, seed),
    ):
        one, other, again = (make(seed) for seed in (0, 1, 0))
        assert one == again
        assert (one.ci_low, one.ci_high) != (other.ci_low, other.ci_high)
        assert one.ci_low == pytest.approx(other.ci_low, rel=0.2, abs=1)


def test_sign_test_is_of_prompts():
    # By hand: of 8 signs 7 are positive: 2 (1 + 8) / 2^8.
    found = scoring.sign_test(np.array([1] * 7 + [-1] + [0] * 4))
    assert found == scoring.SignTest(wins=7, losses=1, ties=4, p=pytest.approx(18 / 256))
    # Three prompts: two wins to one loss, one to one, and a tie beside a loss.
    outcomes, prompts = np.array([1, 1, -1, 1, -1, 0, -1]), list("aaabbcc")
    found = scoring.sign_test(outcomes, prompts)
    assert found == scoring.SignTest(wins=1, losses=1, ties=1, p=1.0)
    assert scoring.sign_test(np.zeros(5, int)).p == 1.0


def test_sign_test_is_false_no_more_often_than_it_says():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 4)
    # Rows of a prompt are alike, and no side is favoured.
    verdicts = [np.repeat(rng.choice([1, 0, -1], size=25), 4) for _ in range(400)]
    shared = [scoring.sign_test(each, groups.tolist()).p for each in verdicts]
    apart = [scoring.sign_test(each).p for each in verdicts]
    assert np.mean(np.array(shared) < 0.05) < 0.06 and np.mean(np.array(apart) < 0.05) > 0.2
