"""Tests of Bradley-Terry ratings: by hand, against another optimiser, and their intervals."""

import numpy as np
import pytest
from scipy import optimize

from pit_jax.evaluation import bradley_terry, elo, scoring

UNIT = 400 / np.log(10)


def test_two_models_by_hand():
    # 30 wins, 6 losses and 4 ties are 32 to 8: odds of 4, and 400 log10(4) points.
    found = bradley_terry.ratings([[0, 1]], [[1] * 30 + [-1] * 6 + [0] * 4])
    assert found.rating[0] - found.rating[1] == pytest.approx(400 * np.log10(4), abs=0.2)
    assert found.rating.mean() == pytest.approx(1000)
    turned = bradley_terry.ratings([[1, 0]], [[1] * 30 + [-1] * 6 + [0] * 4])
    np.testing.assert_allclose(turned.rating, found.rating[::-1])
    # One that always wins is finite, far ahead, and nothing says how far.
    alone = bradley_terry.ratings([[0, 1]], [[1] * 40])
    assert 1300 < alone.rating[0] < 3000 and np.isnan([alone.low, alone.high]).all()


def _verdicts(seed, prompts=60, size=1):
    """Four models of unlike strength, by scores on prompts, of which `size` rows are alike."""
    levels = np.array([0.0, 0.3, 0.9, 0.4])
    scores = np.random.default_rng(seed).normal(size=(4, prompts)) + levels[:, None]
    pairs, outcomes = scoring.pairwise_outcomes(
        4, lambda a, b: scoring.win_lose_tie(scores[a], scores[b], 0.2)
    )
    return pairs, np.repeat(outcomes, size, axis=1)


def _by_another_optimiser(pairs, outcomes):
    """Maximum likelihood with the last rating fixed, and no prior: then moved to a mean of 1000."""

    def loss(free):
        ratings = np.append(free, 0.0)
        odds = (ratings[pairs[:, 0]] - ratings[pairs[:, 1]])[:, None]
        return np.sum(np.logaddexp(0, odds) - (outcomes + 1) / 2 * odds)

    found = optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-7}).x
    ratings = UNIT * np.append(found, 0.0)
    return ratings - ratings.mean() + 1000


def test_against_another_optimiser():
    pairs, outcomes = _verdicts(0)
    found = bradley_terry.ratings(pairs, outcomes, resamples=2)
    np.testing.assert_allclose(found.rating, _by_another_optimiser(pairs, outcomes), atol=0.05)
    # ELO with ever more matches goes to the same, and isn't there yet after these.
    lagging = elo.elo_ratings(pairs, outcomes, resamples=2)
    np.testing.assert_array_equal(np.argsort(found.rating), np.argsort(lagging.rating))
    assert np.ptp(lagging.rating) < np.ptp(found.rating)


def test_intervals_are_those_of_resampled_prompts():
    pairs, outcomes = _verdicts(1, size=3)
    groups = np.repeat(np.arange(60), 3).tolist()
    found = bradley_terry.ratings(pairs, outcomes, groups)
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(150):
        rows = np.concatenate([3 * g + np.arange(3) for g in rng.integers(60, size=60)])
        draws.append(_by_another_optimiser(pairs, outcomes[:, rows]))
    half = 2.0 * np.std(draws, axis=0) * np.sqrt(60 / 59)
    np.testing.assert_allclose((found.high - found.low) / 2, half, rtol=0.2)
    np.testing.assert_allclose(found.high - found.rating, found.rating - found.low)
    # Three copies say no more than one: wider by the root of three than rows alone.
    apart = bradley_terry.ratings(pairs, outcomes)
    ratio = (found.high - found.low) / (apart.high - apart.low)
    np.testing.assert_allclose(ratio, np.sqrt(3), rtol=0.15)


def _of_strengths(strengths, rows=120):
    """Verdicts on every two models, by the model of Bradley and Terry, in log odds."""
    rng = np.random.default_rng(3)
    pairs = [(a, b) for b in range(len(strengths)) for a in range(b)]
    return pairs, np.stack(
        [
            np.where(rng.random(rows) < 1 / (1 + np.exp(strengths[b] - strengths[a])), 1, -1)
            for a, b in pairs
        ]
    )


@pytest.mark.parametrize(
    "strengths", [[99, 0, 0], [0, 0.5, -99], [99, 0, 98.5, 0.5], [-0.5, 99, 0, 198, 99.5]]
)
def test_models_that_win_all_against_others_leave_no_interval(strengths):
    """Also where each model varies against some: what isn't known moves the mean of all ratings."""
    pairs, outcomes = _of_strengths(np.array(strengths))
    found = bradley_terry.ratings(pairs, outcomes, resamples=20)
    assert np.isnan([found.low, found.high]).all() and np.isfinite(found.rating).all()


@pytest.mark.parametrize("result", [-1, 0])
def test_ten_groups_with_another_result_are_enough_for_an_interval(result):
    """The first model wins all but these, lost or tied, against one of the others or the other."""
    pairs, outcomes = _of_strengths(np.array([99, 0, 0]))
    outcomes[0, :5] = outcomes[1, 4:10] = result
    assert np.isfinite(bradley_terry.ratings(pairs, outcomes, resamples=20).low).all()
    assert np.isfinite(bradley_terry.ratings(pairs, -outcomes, resamples=20).low).all()
    # Two of these rows are of one prompt.
    groups = [max(row, 1) for row in range(120)]
    assert np.isnan(bradley_terry.ratings(pairs, outcomes, groups, resamples=20).low).all()
    # Equal ratings stand on the same side.
    outcomes[2] = np.tile([1, -1], 60)
    outcomes[:2] = outcomes[0]
    found = bradley_terry.ratings(pairs, outcomes, resamples=20)
    assert np.isnan(found.low).all()
    outcomes[:2, 5:20] = result
    found = bradley_terry.ratings(pairs, outcomes, resamples=20)
    assert found.rating[1] == pytest.approx(found.rating[2]) and np.isfinite(found.low).all()


def test_elos_interval_is_missing_where_verdicts_on_a_model_are_alike():
    pairs, outcomes = _of_strengths(np.array([0, 99, 0.5]))
    found = elo.elo_ratings(pairs, outcomes, shuffles=5, resamples=20)
    np.testing.assert_array_equal(np.isnan(found.low), [False, True, False])
    np.testing.assert_array_equal(np.isnan(found.high), [False, True, False])
    outcomes[0, :10] = 1
    assert np.isfinite(elo.elo_ratings(pairs, outcomes, shuffles=5, resamples=20).low).all()


def test_seed_moves_the_resamples():
    pairs, outcomes = _verdicts(2)
    found = [bradley_terry.ratings(pairs, outcomes, seed=s, resamples=50) for s in (0, 1, 0)]
    np.testing.assert_array_equal(found[0].low, found[2].low)
    assert (found[0].low != found[1].low).all() and (found[0].rating == found[1].rating).all()


def test_bradley_terry_rejects():
    with pytest.raises(ValueError, match=r"pairs \[Q, 2\] and outcomes \[Q, N\]"):
        bradley_terry.ratings([[0, 1]], [1, 0])
    with pytest.raises(ValueError, match="at least one comparison"):
        bradley_terry.ratings(np.zeros((1, 2), int), np.zeros((1, 0), int))
