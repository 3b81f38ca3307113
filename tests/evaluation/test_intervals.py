"""Tests of intervals: their groups, each method by hand, and how many truths they cover."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pit_jax.evaluation import intervals, scoring


def test_groups_are_numbered_as_they_occur():
    numbers = intervals.group_numbers(["b", None, "a", "b", None], 5)
    np.testing.assert_array_equal(numbers, [0, 1, 2, 0, 3])
    np.testing.assert_array_equal(intervals.group_numbers(None, 3), [0, 1, 2])
    sums, sizes = intervals.by_group(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), numbers)
    np.testing.assert_array_equal(sums, [5, 2, 3, 5])
    np.testing.assert_array_equal(sizes, [2, 1, 1, 1])
    with pytest.raises(ValueError, match="groups: expected one of each of 3 rows, got 2"):
        intervals.group_numbers(["a", "b"], 3)


def test_thin_are_few_groups_few_that_differ_or_skewed_ones():
    def is_thin(sums, size=1):
        return intervals.is_thin(np.array(sums, float), np.full(len(sums), size))

    assert is_thin(range(29)) and not is_thin(range(30))
    assert is_thin([1] * 45 + [0] * 9) and not is_thin([1] * 90 + [-1] * 5 + [0] * 90)
    assert is_thin([0] * 591 + [1] * 5 + [-1] * 4) and not is_thin([0] * 590 + [1, -1] * 5)
    # The mean of n verdicts, k of which are others, has skewness (n - 2 k) / sqrt(n k (n - k)).
    assert is_thin([1] * 586 + [0] * 14) and not is_thin([1] * 585 + [0] * 15)
    assert is_thin([1] * 30, size=8) and not is_thin(range(30), size=8)
    # 40 groups, 4 of which have 180 of 324 rows, count as 12.
    sums, sizes = np.arange(40.0), np.repeat([45, 4], [4, 36])
    assert sizes.sum() ** 2 / np.sum(sizes**2) == pytest.approx(12.1, abs=0.1)
    assert intervals.is_thin(sums, sizes)
    # Two groups of 500 rows, which differ and so skew nothing, among 38 of one.
    signs, sizes = np.tile([1.0, -1.0], 20), np.array([500, 500] + [1] * 38)
    assert intervals.is_thin(signs * sizes, sizes) and not intervals.is_thin(signs, sizes**0)


def test_bootstrap_is_of_the_mean_over_rows():
    """Of 40 groups every second has three rows of 1, the others one row of 0: a mean of 3/4."""
    sums, sizes = np.tile([3.0, 0.0], 20), np.tile([3, 1], 20)
    rng = np.random.default_rng(1)
    large = rng.binomial(40, 0.5, size=100_000)  # groups of three in a resample
    expected = intervals.percentiles(3 * large / (2 * large + 40))
    np.testing.assert_allclose(intervals.bootstrap(sums, sizes, 0, 10_000), expected, atol=0.005)


@pytest.mark.parametrize(("agreed", "n"), [(0, 1), (1, 2), (8, 8), (7, 8), (3, 29), (599, 600)])
def test_bounded_of_two_values_is_clopper_and_pearsons(agreed, n):
    exact = stats.binomtest(agreed, n).proportion_ci(method="exact")
    values, ones = np.repeat([1.0, 0.0], [agreed, n - agreed]), np.ones(n, int)
    assert intervals.bounded(values, ones, 0, 1) == pytest.approx((exact.low, exact.high))
    scaled = intervals.bounded(3 * values - 1, ones, -1, 2)
    assert scaled == pytest.approx((3 * exact.low - 1, 3 * exact.high - 1))


def test_bounded_of_one_group_by_hand():
    # The weight of the group at the bound is uniform: 0.975 at most, but for 0.025.
    low, high = intervals.bounded(np.array([1.5]), np.array([3]), -1, 1)
    assert (low, high) == pytest.approx((0.5 - 0.975 * 1.5, 0.5 + 0.975 * 0.5))


def test_bounded_against_drawn_weights():
    rng = np.random.default_rng(0)
    means, sizes = rng.random(12), rng.integers(1, 6, size=12)
    weights = rng.exponential(size=(200_000, 13)) * np.append(sizes, sizes.max())
    weights /= weights.sum(axis=1, keepdims=True)
    expected = [
        np.percentile(weights @ np.append(means, bound), share)
        for bound, share in ((0, 2.5), (1, 97.5))
    ]
    found = intervals.bounded(means * sizes, sizes, 0, 1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_bounded_covers_whatever_the_shares_of_verdicts():
    """Exactly: all outcomes of 8 verdicts, with their probabilities for shares in steps of .02."""
    n, ones = 8, np.ones(8, int)
    counts = [(w, l, n - w - l) for w in range(n + 1) for l in range(n + 1 - w)]  # noqa: E741
    ends = {
        (w, lost): intervals.bounded(np.repeat([1.0, -1.0, 0.0], [w, lost, tied]), ones, -1, 1)
        for w, lost, tied in counts
        if w >= lost
    }
    ends |= {(lost, w): (-high, -low) for (w, lost), (low, high) in ends.items()}
    worst = 1.0
    for win, lose in itertools.product(np.linspace(0, 1, 51), repeat=2):
        if win + lose > 1 + 1e-9:
            continue
        shares = [win, lose, max(0.0, 1 - win - lose)]
        low, high = np.array([ends[w, lost] for w, lost, _ in counts]).T
        inside = (low <= win - lose + 1e-9) & (win - lose - 1e-9 <= high)
        worst = min(worst, stats.multinomial.pmf(counts, n, shares)[inside].sum())
    assert worst >= 0.95


def test_bounded_rejects_values_outside():
    with pytest.raises(ValueError, match="expected values between 0 and 1, got 1.5"):
        intervals.bounded(np.array([0.5, 1.5]), np.array([1, 1]), 0, 1)


def test_student_by_hand():
    values = np.array([1.0, 2.0, 6.0, 7.0])
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    expected = (4 - half, 4 + half)
    assert intervals.student(values, np.ones(4, int)) == pytest.approx(expected)
    # Copies of a row in its group say nothing more.
    assert intervals.student(8 * values, np.full(4, 8)) == pytest.approx(expected)
    # Groups of 1 and 3: the mean is 10 / 4, and the groups are 1 - 2.5 and 9 - 7.5 from it.
    half = stats.t.ppf(0.975, 1) * math.sqrt(2 * (1.5**2 + 1.5**2)) / 4
    assert intervals.student(np.array([1.0, 9.0]), np.array([1, 3])) == pytest.approx(
        (2.5 - half, 2.5 + half)
    )
    assert np.isnan(intervals.student(np.array([3.0, 6.0]), np.array([1, 2]))).all()
    assert np.isnan(intervals.student(np.array([3.0]), np.array([1]))).all()


def test_whole_groups_are_drawn():
    rng = np.random.default_rng(0)
    group = np.array([0, 1, 0, 2, 2, 2])
    rows = [intervals.draw_rows(rng, group) for _ in range(300)]
    for drawn in rows:
        assert drawn.shape == (6,)
        position = 0
        while position < 6:
            members = np.flatnonzero(group == group[drawn[position]])
            part = drawn[position : position + members.size]
            np.testing.assert_array_equal(part, members[: part.size])
            position += members.size
    assert {int(drawn[0]) for drawn in rows} == {0, 1, 3}
    # Where every row is a group, it is the usual resample of rows.
    alone = intervals.draw_rows(np.random.default_rng(3), np.arange(9))
    np.testing.assert_array_equal(alone, np.random.default_rng(3).integers(9, size=9))


@pytest.mark.parametrize(
    ("num_prompts", "least", "most"), [(12, 0.94, 1.0), (60, 0.92, 0.98)], ids=["few", "many"]
)
def test_intervals_cover_the_truth_of_rows_that_share_prompts(num_prompts, least, most):
    """Verdicts are +1 or -1, alike for the 8 rows of a prompt but for one in five."""
    rng, trials = np.random.default_rng(0), 200
    groups = np.repeat(np.arange(num_prompts), 8).tolist()
    covered, covered_by_rows = 0, 0
    for seed in range(trials):
        prompt, own = rng.random(num_prompts) < 0.65, rng.random(8 * num_prompts) < 0.65
        shared = rng.random(8 * num_prompts) < 0.8
        outcomes = 2 * np.where(shared, np.repeat(prompt, 8), own) - 1
        found = scoring.compare(outcomes, groups, seed, resamples=400)
        covered += found.ci_low <= 30 <= found.ci_high
        found = scoring.compare(outcomes, None, seed, resamples=400)
        covered_by_rows += found.ci_low <= 30 <= found.ci_high
    assert least <= covered / trials <= most
    assert covered_by_rows / trials < 0.75
