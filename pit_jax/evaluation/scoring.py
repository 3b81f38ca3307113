"""Computes the numbers of the paper's tables, with intervals, from scores and verdicts.

A verdict on a pair of responses (first, second) is +1 when the first is better, -1 when it is worse
and 0 for a tie; `outcomes` are int8 arrays of them, one a prompt. Win, lose, tie and delta are in
percent, as in the paper's tables; accuracies are shares between 0 and 1.

Every interval is a 95% one, and what it takes as independent are groups of rows, as those that
share a prompt (`groups`, see `intervals`).

Everything is NumPy and deterministic for a given seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pit_jax.data.layouts import GAP_INEQUALITIES, GAP_PAIRS
from pit_jax.evaluation import intervals
from pit_jax.evaluation.intervals import RESAMPLES, Groups

# sigmoid(difference) in [0.45, 0.55] is |difference| <= log(0.55 / 0.45).
REWARD_TIE_MARGIN = math.log(0.55 / 0.45)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Holds win, lose and tie rates of a first model against a second, all in percent.

    Attributes:
      win, lose, tie: shares of the rows; they add up to 100.
      delta: win - lose, the paper's measure of a performance gap.
      ci_low, ci_high: 95% interval of delta.
      n: number of rows.
    """

    win: float
    lose: float
    tie: float
    delta: float
    ci_low: float
    ci_high: float
    n: int


@dataclasses.dataclass(frozen=True)
class SignTest:
    """Holds a sign test of a first model against a second, with each group as one draw.

    Attributes:
      wins, losses, ties: how many groups have more wins than losses, fewer, and as many.
      p: probability of signs as one-sided as these, or more so, if a group that isn't tied were as
        likely to be won as lost; two-sided, and 1 where all groups are tied.
    """

    wins: int
    losses: int
    ties: int
    p: float


@dataclasses.dataclass(frozen=True)
class Mean:
    """Holds a mean over n rows with its 95% interval, NaN where the rows don't tell one."""

    mean: float
    ci_low: float
    ci_high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Holds the share of n pairs on which an evaluator agrees with labels, and a 95% interval."""

    accuracy: float
    ci_low: float
    ci_high: float
    n: int


def win_lose_tie(scores_a, scores_b, tie_margin: float = 0.0) -> np.ndarray:
    """Makes verdicts [N] of two score arrays [N]; a difference up to `tie_margin` is a tie."""
    a_N, b_N = _scores(scores_a, "scores_a"), _scores(scores_b, "scores_b")
    if a_N.shape != b_N.shape:
        raise ValueError(
            f"expected as many scores of each model, got {a_N.shape[0]} and {b_N.shape[0]}"
        )
    if tie_margin < 0:
        raise ValueError(f"tie_margin: expected 0 or more, got {tie_margin}")
    difference_N = a_N - b_N
    return np.where(np.abs(difference_N) <= tie_margin, 0, np.sign(difference_N)).astype(np.int8)


def reward_judge_outcomes(r1, r2) -> np.ndarray:
    """Makes verdicts [N] of rewards: a tie is where sigmoid(r1 - r2) is in [0.45, 0.55] (4.4)."""
    return win_lose_tie(r1, r2, tie_margin=REWARD_TIE_MARGIN)


def compare(
    outcomes, groups: Groups = None, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Summarises verdicts [N], with an interval of delta.

    Args:
      outcomes: the verdicts.
      groups: the group of each row; see `intervals.group_numbers`.
      seed, resamples: of the bootstrap.
    """
    outcomes_N = _outcomes(outcomes)
    n = outcomes_N.size
    counts = np.array([(outcomes_N == verdict).sum() for verdict in (1, -1, 0)])
    sums_G, sizes_G = intervals.by_group(outcomes_N, intervals.group_numbers(groups, n))
    if sums_G.size == n and not intervals.is_thin(sums_G, sizes_G):
        # Verdicts take three values, so resampling N rows with replacement is one multinomial draw
        # of the three counts: the distribution of `bootstrap` without its N x resamples table.
        draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
        low, high = intervals.percentiles(100.0 * (draws[:, 0] - draws[:, 1]) / n)
    else:
        interval = intervals.mean(sums_G, sizes_G, (-1, 1), seed, resamples)
        low, high = (100.0 * end for end in interval)
    win, lose, tie = 100.0 * counts / n
    return Comparison(
        win=float(win),
        lose=float(lose),
        tie=float(tie),
        delta=float(100.0 * (counts[0] - counts[1]) / n),
        ci_low=low,
        ci_high=high,
        n=n,
    )


def sign_test(outcomes, groups: Groups = None) -> SignTest:
    """Tests by the signs of groups (Dixon and Mood, 1946) whether verdicts [N] favour a side.

    A group's sign is that of the sum of its verdicts. The test is exact at any number of groups.

    Args:
      outcomes: the verdicts.
      groups: the group of each row; see `intervals.group_numbers`.
    """
    from scipy import stats  # its import takes a second or two

    outcomes_N = _outcomes(outcomes)
    sums_G, _ = intervals.by_group(outcomes_N, intervals.group_numbers(groups, outcomes_N.size))
    wins, losses = int((sums_G > 0).sum()), int((sums_G < 0).sum())
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return SignTest(wins=wins, losses=losses, ties=sums_G.size - wins - losses, p=float(p))


def mean_interval(
    values,
    groups: Groups = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Mean:
    """Takes the mean of values [N], with its interval.

    Args:
      values: the values.
      groups: the group of each row; see `intervals.group_numbers`.
      bounds: the lowest and the highest value that there can be, if there are any.
      seed, resamples: of the bootstrap.
    """
    values_N = _scores(values, "values")
    n = values_N.size
    sums_G, sizes_G = intervals.by_group(values_N, intervals.group_numbers(groups, n))
    low, high = intervals.mean(sums_G, sizes_G, bounds, seed, resamples)
    return Mean(mean=float(values_N.mean()), ci_low=low, ci_high=high, n=n)


def agreement(outcomes, groups: Groups = None) -> Agreement:
    """Counts an evaluator's agreement with labels (Table 4) in verdicts [N] on (chosen, rejected).

    Only a verdict for the chosen response agrees; a tie doesn't. R_P prefers it when
    r(x, y_w) > r(x, y_l), R_PIT when r_gap(x, y_w, y_l) > r_gap(x, y_l, y_w).

    Args:
      outcomes: the verdicts.
      groups: the group of each pair; see `intervals.group_numbers`.
    """
    agreed_N = _outcomes(outcomes) == 1
    n = agreed_N.size
    sums_G, sizes_G = intervals.by_group(agreed_N, intervals.group_numbers(groups, n))
    if sums_G.size == n and not intervals.is_thin(sums_G, sizes_G):
        from scipy import stats  # its import takes a second or two

        wilson = stats.binomtest(int(agreed_N.sum()), n).proportion_ci(method="wilson")
        low, high = float(wilson.low), float(wilson.high)
    else:
        low, high = intervals.mean(sums_G, sizes_G, (0, 1), seed=0)
    return Agreement(accuracy=float(agreed_N.mean()), ci_low=low, ci_high=high, n=n)


def gap_reward_summary(
    rewards: Mapping[str, np.ndarray], groups: Groups = None
) -> dict[str, object]:
    """Computes Table 4 and Equation 1 for a gap reward model from its scores on held-out pairs.

    Args:
      rewards: 'wl', 'ww', 'll', 'lw' -> [N], where 'wl' is r_gap(x, y_w, y_l) and so on.
      groups: the group of each pair; see `intervals.group_numbers`.

    Returns:
      accuracy, ci_low, ci_high (shares) and n of r_wl > r_lw; 'inequalities', the share of pairs
      that meet each of the five ('wl>ww', ...); 'means' of the four.
    """
    missing = [pair for pair in GAP_PAIRS if pair not in rewards]
    if missing:
        raise ValueError(f"rewards: expected {', '.join(GAP_PAIRS)}; missing {', '.join(missing)}")
    verdict = {
        f"{above}>{below}": win_lose_tie(rewards[above], rewards[below])
        for above, below in GAP_INEQUALITIES
    }
    return {
        **dataclasses.asdict(agreement(verdict["wl>lw"], groups)),
        "inequalities": {name: float((v_N == 1).mean()) for name, v_N in verdict.items()},
        "means": {pair: float(np.mean(rewards[pair])) for pair in GAP_PAIRS},
    }


def difference_rewards(chosen, rejected) -> dict[str, np.ndarray]:
    """Makes the gap R_P(x, y_1) − R_P(x, y_2) of R_P's scores (Appendix C), in the four pairs.

    Args:
      chosen, rejected: R_P's scores [N] of y_w and of y_l.

    Returns:
      'wl', 'ww', 'll', 'lw' -> [N], where 'wl' is the gap of y_w against y_l and so on. The first
      and the last are of opposite sign, and a response's gap against itself is 0.
    """
    scores = {"w": _scores(chosen, "chosen"), "l": _scores(rejected, "rejected")}
    return {pair: scores[pair[0]] - scores[pair[1]] for pair in GAP_PAIRS}


def pairwise_outcomes(
    count: int, judge: Callable[[int, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Compares every two of M models on N prompts.

    Args:
      count: M.
      judge: makes verdicts [N] for the model of the first index against that of the second.

    Returns:
      The M(M-1)/2 pairs [Q, 2] of model indices, and the verdicts [Q, N] for the first of each.
    """
    if count < 2:
        raise ValueError(f"expected 2 or more models, got {count}")
    pairs = list(itertools.combinations(range(count), 2))
    return np.array(pairs), np.stack([judge(a, b) for a, b in pairs])


def density_histograms(
    series: Mapping[str, Sequence[float]], bins: int = 40
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Computes densities of several samples over the same bins (Figure 2).

    Returns:
      edges [bins + 1], and for each name its density [bins], which integrates to 1.
    """
    samples = {name: _scores(values, name) for name, values in series.items()}
    if not samples:
        raise ValueError("expected at least one series, got none")
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=bins)
    return edges, {
        name: np.histogram(values, bins=edges, density=True)[0] for name, values in samples.items()
    }


def reward_regions(means: Mapping[str, float]) -> tuple[float, float] | None:
    """Bounds Figure 4's Similar region by a gap reward model's means on held-out pairs.

    A response as good as its reference scores like r_ww and r_ll, a better response like r_wl, and
    a worse response like r_lw. The bounds are the midpoints between neighbours. The paper doesn't
    say how it drew its regions.

    Returns:
      (low, high): Worse lies below low, Better above high. None if the means aren't in the order
      of Equation 1, for then there are no such regions.
    """
    alike = (means["ww"], means["ll"])
    low, high = (means["lw"] + min(alike)) / 2, (means["wl"] + max(alike)) / 2
    if not means["lw"] < min(alike) or not means["wl"] > max(alike):
        return None
    return low, high


def regions_of(reward_models: Iterable[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Returns the `reward_regions` of the first row of a report's reward models that has means."""
    for row in reward_models:
        means = row.get("means") or {}
        values = [means.get(pair) for pair in GAP_PAIRS]
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            return reward_regions(means)
    return None


def region_of(reward: float, regions: tuple[float, float]) -> str:
    """Returns 'worse', 'similar' or 'better', the region of Figure 4 that a reward lies in."""
    low, high = regions
    return "worse" if reward < low else "better" if reward > high else "similar"


def _scores(values, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected one score a prompt, got an array of {array.shape}")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}: expected finite scores, got {array[bad]} at index {bad}")
    return array


def _outcomes(values) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"outcomes: expected one verdict a prompt, got an array of {array.shape}")
    if not np.isin(array, (-1, 0, 1)).all():
        raise ValueError(f"outcomes: expected -1, 0 and 1, got {np.unique(array)[:5].tolist()}")
    return array
