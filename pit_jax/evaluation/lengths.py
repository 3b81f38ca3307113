"""Tells what of a comparison is length: how often the longer response wins, and Δ at equal length.

Judges prefer long responses, a language model as much as a reward model, so a Δ may only say which
model writes more. Here lengths are numbers of characters, which responses of any source have.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pit_jax.evaluation import intervals, logistic, scoring
from pit_jax.evaluation.intervals import Groups


@dataclasses.dataclass(frozen=True)
class LengthEffect:
    """Holds how a comparison depends on length; what rows don't tell is NaN.

    Attributes:
      longer_wins: share of the rows with a longer response and no tie in which the longer one wins.
      longer_low, longer_high: its 95% interval.
      longer_n: how many rows these are.
      delta: Δ at equal length, in percent.
      ci_low, ci_high: its 95% interval.
    """

    longer_wins: float
    longer_low: float
    longer_high: float
    longer_n: int
    delta: float
    ci_low: float
    ci_high: float


def effect(outcomes, first_lengths, second_lengths, groups: Groups = None) -> LengthEffect:
    """Measures what length does in a comparison.

    Δ at equal length is that of the length-controlled win rate of AlpacaEval (Dubois et al., 2024,
    arXiv 2404.04475), for one comparison: a logistic regression has

        P(first is better) = sigmoid(a + b tanh(d / s)),

    where d is how much longer the first response is, and s the standard deviation of d. A tie
    counts as half a win (Papke and Wooldridge, 1996). Where lengths are equal, the share of wins is
    sigmoid(a), and so Δ is 2 sigmoid(a) - 1. AlpacaEval's term for how hard each prompt is takes
    several models, and isn't here. `logistic.fit` has a weak prior.

    The interval is that of a, whose variance is the sandwich estimate over groups (Liang and Zeger,
    1986) with G / (G - 1) for G groups, by Student's t. There is none where a Δ of these rows has
    no bootstrap, nor where lengths settle nearly all verdicts.

    Args:
      outcomes: the verdicts [N] for the first response.
      first_lengths, second_lengths: lengths [N] of both.
      groups: the group of each row; see `intervals.group_numbers`.
    """
    outcomes_N = np.asarray(outcomes)
    longer_N = np.asarray(first_lengths, float) - np.asarray(second_lengths, float)
    if outcomes_N.ndim != 1 or not outcomes_N.size or longer_N.shape != outcomes_N.shape:
        raise ValueError(
            f"lengths: expected one of each response to {outcomes_N.size} prompts, one or more, "
            f"got {longer_N.shape}"
        )
    group_N = intervals.group_numbers(groups, outcomes_N.size)
    share = _longer_wins(outcomes_N, longer_N, group_N)
    return LengthEffect(*share, *_at_equal_length(outcomes_N, longer_N, group_N))


def _longer_wins(outcomes_N, longer_N, group_N) -> tuple[float, float, float, int]:
    told_N = (outcomes_N != 0) & (longer_N != 0)
    if not told_N.any():
        return float("nan"), float("nan"), float("nan"), 0
    # Length is the evaluator here, and the verdicts are the labels.
    agreed = (outcomes_N * np.sign(longer_N))[told_N]
    found = scoring.agreement(agreed, group_N[told_N].tolist())
    return found.accuracy, found.ci_low, found.ci_high, found.n


def _at_equal_length(outcomes_N, longer_N, group_N) -> tuple[float, float, float]:
    spread = longer_N.std()
    if spread == 0 and longer_N.any():  # one difference everywhere, which is the models' own
        return float("nan"), float("nan"), float("nan")
    scaled_N = np.tanh(longer_N / spread) if spread else longer_N
    features_N2 = np.stack([np.ones_like(scaled_N), scaled_N], axis=1)
    won_N = (outcomes_N + 1) / 2.0
    fitted_12, information_122 = logistic.fit(features_N2, won_N[None], np.ones((1, won_N.size)))
    chance_N, centre = logistic.chances(features_N2, fitted_12)[0], fitted_12[0, 0]

    def percent(log_odds: float) -> float:
        return float(100.0 * np.tanh(log_odds / 2))

    undecided = 4 * np.sum(chance_N * (1 - chance_N))
    sums_G, sizes_G = intervals.by_group(outcomes_N, group_N)
    if intervals.is_thin(sums_G, sizes_G) or undecided < intervals.DIFFERENT:
        return percent(centre), float("nan"), float("nan")
    residuals_N2 = (won_N - chance_N)[:, None] * features_N2
    scores_G2 = np.stack([intervals.by_group(each, group_N)[0] for each in residuals_N2.T], axis=1)
    inverse_22 = np.linalg.inv(information_122[0])
    variance_22 = inverse_22 @ (scores_G2.T @ scores_G2) @ inverse_22
    variance = variance_22[0, 0] * sums_G.size / (sums_G.size - 1)
    half = intervals.t_quantile(sums_G.size) * np.sqrt(variance)
    return percent(centre), percent(centre - half), percent(centre + half)
