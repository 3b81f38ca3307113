"""Tests of what length does in a comparison: by hand, and against fits by another optimiser."""

import numpy as np
import pytest
from scipy import optimize, stats

from pit_jax.evaluation import lengths, scoring


def test_the_longer_response_wins_by_hand():
    # Ties and equal lengths say nothing of it: four rows do, and in three the longer one wins.
    outcomes = np.array([1, 1, -1, 1, 0, 1, -1])
    first = [5, 9, 2, 1, 8, 4, 4]
    second = [4, 3, 6, 7, 2, 4, 4]
    found = lengths.effect(outcomes, first, second)
    assert (found.longer_wins, found.longer_n) == (0.75, 4)
    exact = stats.binomtest(3, 4).proportion_ci(method="exact")
    assert (found.longer_low, found.longer_high) == pytest.approx((exact.low, exact.high))
    turned = lengths.effect(-outcomes, second, first)
    assert (turned.longer_wins, turned.longer_n) == (0.75, 4)
    # Four rows of one prompt are one draw, whose weight is at most 0.975.
    shared = lengths.effect(outcomes, first, second, ["x"] * 7)
    assert shared.longer_low == pytest.approx(0.025 * 0.75)


def _rows(seed, n=400, size=1, level=0.8, slope=1.5):
    """Verdicts of a logistic model with ties, and lengths; `size` rows of a prompt are alike."""
    rng = np.random.default_rng(seed)
    difference = np.repeat(rng.normal(20, 60, size=n // size).round(), size)
    chance = 1 / (1 + np.exp(-(level + slope * np.tanh(difference / difference.std()))))
    won = np.repeat(rng.random(n // size), size) < chance
    outcomes = np.where(np.repeat(rng.random(n // size), size) < 0.2, 0, 2 * won - 1)
    return outcomes, difference + 200, np.full(n, 200.0)


def _by_another_optimiser(outcomes, first, second, groups):
    """The same regression in plain terms: its log odds at equal length, and their error."""
    difference = first - second
    x = np.stack([np.ones(len(difference)), np.tanh(difference / np.std(difference))], 1)
    y = (outcomes + 1) / 2

    def loss(c):
        odds = x @ c
        return np.sum(np.logaddexp(0, odds) - y * odds) + 0.005 * np.sum(c**2)

    c = optimize.minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-8}).x
    p = 1 / (1 + np.exp(-(x @ c)))
    bread = sum(pi * (1 - pi) * np.outer(xi, xi) for pi, xi in zip(p, x)) + 0.01 * np.eye(2)
    meat, count = np.zeros((2, 2)), len(set(groups))
    for group in set(groups):
        score = sum((y[i] - p[i]) * x[i] for i in range(len(y)) if groups[i] == group)
        meat += np.outer(score, score)
    variance = np.linalg.inv(bread) @ meat @ np.linalg.inv(bread) * count / (count - 1)
    half = stats.t.ppf(0.975, count - 1) * np.sqrt(variance[0, 0])
    return [100 * np.tanh(odds / 2) for odds in (c[0], c[0] - half, c[0] + half)]


@pytest.mark.parametrize("size", [1, 4])
def test_delta_at_equal_length_against_another_optimiser(size):
    outcomes, first, second = _rows(size, size=size)
    groups = np.repeat(np.arange(400 // size), size).tolist()
    found = lengths.effect(outcomes, first, second, groups)
    expected = _by_another_optimiser(outcomes, first, second, groups)
    np.testing.assert_allclose([found.delta, found.ci_low, found.ci_high], expected, atol=1e-4)
    # The first response is longer on average, and longer ones win.
    assert found.delta < scoring.compare(outcomes).delta
    turned = lengths.effect(-outcomes, second, first, groups)
    assert turned.delta == pytest.approx(-found.delta)
    assert turned.ci_low == pytest.approx(-found.ci_high)


def test_equal_lengths_leave_delta_as_it_is():
    outcomes = np.repeat([1, -1, 0], [60, 25, 15])
    found = lengths.effect(outcomes, np.full(100, 7), np.full(100, 7))
    assert found.delta == pytest.approx(35, abs=0.02)
    assert found.ci_low < 35 < found.ci_high and found.longer_n == 0
    assert np.isnan([found.longer_wins, found.longer_low, found.longer_high]).all()
    # One difference in all rows is the models' own: nothing tells it from length.
    found = lengths.effect(outcomes, np.full(100, 8), np.full(100, 7))
    assert np.isnan([found.delta, found.ci_low, found.ci_high]).all()
    assert found.longer_wins == pytest.approx(60 / 85)


def test_no_interval_where_verdicts_or_lengths_settle_all():
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 99, size=(2, 200))
    alike = lengths.effect(np.ones(200, int), first, second)
    assert 99 < alike.delta < 100 and np.isnan([alike.ci_low, alike.ci_high]).all()
    # The longer one always wins: Δ is that of all, but none at equal length.
    settled = lengths.effect(np.sign(first - second), first, second)
    assert abs(settled.delta) < 45 and settled.longer_wins == 1
    few = lengths.effect(np.tile([1, -1], 10), first[:20], second[:20])
    assert np.isfinite(few.delta) and np.isnan(few.ci_low)


def test_lengths_rejects():
    with pytest.raises(ValueError, match=r"lengths: expected one of each response to 2 prompts"):
        lengths.effect([1, 0], [3], [4])
