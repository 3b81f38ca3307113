"""Computes 95% intervals of means over rows that come in groups, as responses to one prompt do.

Rows of a group depend on each other and groups don't, so a group is the unit of every interval
here. The mean is that of the rows: the sum of the groups' sums by the sum of their sizes.

`mean` chooses the method. Of many groups it is the percentile bootstrap. That one is too narrow
where groups are few or very skewed, and a single point where all are equal; there, in its place,

- of values between known bounds it is `bounded`, which holds at any number of groups;
- of other values it is `student`; values that are all equal then say nothing, and it is NaN.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
# No bootstrap of fewer groups than FEW, nor where fewer than DIFFERENT aren't like the commonest,
# nor where the mean is more skewed than SKEWED; beyond these it covers 93 to 97% of truths.
FEW = 30
DIFFERENT = 10
SKEWED = 0.25

_TAIL = 0.025
_CHUNK_ELEMENTS = 1 << 20

Interval = tuple[float, float]
Groups = Sequence[Hashable | None] | None


def group_numbers(groups: Groups, num_rows: int) -> np.ndarray:
    """Numbers the groups of N rows from 0, in the order in which they first occur.

    Args:
      groups: the group of each row, as its prompt's text; a row with None is a group of its own,
        and with None in place of them all every row is.
      num_rows: N.

    Returns:
      the number of each row's group [N].
    """
    if groups is None:
        return np.arange(num_rows)
    if len(groups) != num_rows:
        raise ValueError(f"groups: expected one of each of {num_rows} rows, got {len(groups)}")
    numbers: dict[Hashable, int] = {}
    keys = [(i,) if group is None else (None, group) for i, group in enumerate(groups)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def by_group(values_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum of each group's values, float64 [G], and its number of rows [G]."""
    return np.bincount(group_N, weights=values_N), np.bincount(group_N)


def few_differ(patterns_GK: np.ndarray) -> bool:
    """Whether fewer than DIFFERENT of the groups' patterns [G] or [G, K] aren't the commonest."""
    _, counts = np.unique(patterns_GK, axis=0, return_counts=True)
    return bool(counts.sum() - counts.max() < DIFFERENT)


def is_thin(sums_G: np.ndarray, sizes_G: np.ndarray) -> bool:
    """Whether a bootstrap over these groups can't be trusted."""
    # Kish's effective number: G where all are as large, and fewer where some have most rows.
    effective = sizes_G.sum() ** 2 / np.sum(sizes_G**2)
    if effective < FEW or few_differ(sums_G / sizes_G):
        return True
    residuals_G = sums_G - sums_G.sum() / sizes_G.sum() * sizes_G
    skewness = np.mean(residuals_G**3) / np.mean(residuals_G**2) ** 1.5
    return bool(abs(skewness) > SKEWED * np.sqrt(sums_G.size))


def mean(
    sums_G: np.ndarray,
    sizes_G: np.ndarray,
    bounds: tuple[float, float] | None,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Computes the interval of the rows' mean.

    Args:
      sums_G, sizes_G: what `by_group` returns.
      bounds: the lowest and the highest value that a row can have; None if there are none.
      seed: of the bootstrap.
      resamples: of the bootstrap.
    """
    if not is_thin(sums_G, sizes_G):
        return bootstrap(sums_G, sizes_G, seed, resamples)
    return student(sums_G, sizes_G) if bounds is None else bounded(sums_G, sizes_G, *bounds)


def percentiles(draws: np.ndarray) -> Interval:
    """Returns the interval that holds the middle 95% of draws."""
    low, high = np.percentile(draws, (100 * _TAIL, 100 * (1 - _TAIL)))
    return float(low), float(high)


def bootstrap(sums_G: np.ndarray, sizes_G: np.ndarray, seed: int, resamples: int) -> Interval:
    """Computes the percentile interval of the rows' mean over resamples of the groups."""
    rng = np.random.default_rng(seed)
    num_groups = sums_G.size
    means = np.empty(resamples)
    rows = max(1, _CHUNK_ELEMENTS // num_groups)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(num_groups, size=(stop - start, num_groups))
        means[start:stop] = sums_G[drawn].sum(axis=1) / sizes_G[drawn].sum(axis=1)
    return percentiles(means)


def student(sums_G: np.ndarray, sizes_G: np.ndarray) -> Interval:
    """Computes Student's interval of the rows' mean, with G - 1 degrees of freedom.

    The standard error is that of a ratio of sums (Cochran, Sampling Techniques, section 6.4); with
    one row a group it is the usual one. NaN where there is one group or all groups are alike.
    """
    num_groups = sums_G.size
    if num_groups < 2 or np.ptp(sums_G / sizes_G) == 0:
        return float("nan"), float("nan")
    centre = sums_G.sum() / sizes_G.sum()
    residuals_G = sums_G - centre * sizes_G
    variance = np.sum(residuals_G**2) * num_groups / (num_groups - 1) / sizes_G.sum() ** 2
    half = t_quantile(num_groups) * np.sqrt(variance)
    return float(centre - half), float(centre + half)


def t_quantile(num_groups: int) -> float:
    """How many standard errors, estimated from so many groups, an interval reaches to a side."""
    from scipy import stats  # its import takes a second or two, and most commands need none of it

    return float(stats.t.ppf(1 - _TAIL, num_groups - 1))


def bounded(sums_G: np.ndarray, sizes_G: np.ndarray, low: float, high: float) -> Interval:
    """Computes an interval of the rows' mean that holds at any number of groups.

    It is Gaffke's (2004; Learned-Miller and Thomas, 1905.06208): the quantile of the mean with
    random weights, uniform over all that add up to 1, on the groups and on one more, all of whose
    rows lie at the bound; that one is as large as the largest. Of rows that lie at one bound or the
    other it is the interval of Clopper and Pearson (1934), which is exact. In general its coverage
    is a conjecture; the tests check it for verdicts, over their distributions.

    Args:
      sums_G, sizes_G: what `by_group` returns.
      low, high: the lowest and the highest value that a row can have.
    """
    means_G = sums_G / sizes_G
    outside = [x for x in means_G if not low <= x <= high]
    if outside:
        raise ValueError(f"bounds: expected values between {low} and {high}, got {outside[0]}")
    return _lower(means_G, sizes_G, low), -_lower(-means_G, sizes_G, -high)


def _lower(means_G: np.ndarray, sizes_G: np.ndarray, bound: float) -> float:
    """The lower end of `bounded`."""
    from scipy import optimize

    if means_G.max() <= bound:
        return float(bound)
    (means, sizes), counts = np.unique(np.stack([means_G, sizes_G]), axis=1, return_counts=True)
    means, sizes = np.append(means, bound), np.append(sizes, sizes.max())
    counts = np.append(counts, 1)

    # A weighted mean is at most t where sum of weight * size * (mean - t) is at most 0.
    def excess(t: float) -> float:
        return _share_below_zero(sizes * (means - t), counts) - _TAIL

    return float(optimize.brentq(excess, bound, means_G.max()))


def _share_below_zero(coefficients: np.ndarray, counts: np.ndarray) -> float:
    """The probability that a sum of c E is at most 0, each c `count` times, E exponential.

    Uniform weights are exponential ones divided by their sum. The probability is an integral over
    u > 0 of the characteristic function (Gil-Pelaez, 1951), the product of 1 / (1 - i c u), here
    over v = log u, where the sum over equal steps has a vanishing error.
    """
    scaled = coefficients / np.sqrt(np.sum(counts * coefficients**2))
    mean_in_deviations = np.sum(counts * scaled)
    # By Cantelli's inequality the other side has less than 1 / (1 + 7^2), so the tail is settled.
    if abs(mean_in_deviations) > 7 or scaled.min() >= 0 or scaled.max() <= 0:
        return float(mean_in_deviations < 0)
    step = 1 / 32
    u_V = np.exp(np.arange(-24, 16, step))
    phase_V, log_size_V = np.zeros_like(u_V), np.zeros_like(u_V)
    for count, c in zip(counts, scaled, strict=True):
        phase_V += count * np.arctan(c * u_V)
        log_size_V -= 0.5 * count * np.log1p((c * u_V) ** 2)
    return 0.5 - step / np.pi * float(np.sum(np.sin(phase_V) * np.exp(log_size_V)))


def draw_rows(rng: np.random.Generator, group_N: np.ndarray) -> np.ndarray:
    """Draws N of N rows: whole groups with replacement, the last one cut where N are reached."""
    order = np.argsort(group_N, kind="stable")
    sizes_G = np.bincount(group_N)
    drawn = rng.integers(sizes_G.size, size=group_N.size)
    ends = np.cumsum(sizes_G[drawn])
    drawn = drawn[: np.searchsorted(ends, group_N.size) + 1]
    sizes, firsts = sizes_G[drawn], np.cumsum(sizes_G)[drawn] - sizes_G[drawn]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[(np.repeat(firsts, sizes) + within)[: group_N.size]]
