"""Computes Bradley-Terry ratings of models from verdicts on their responses, beside ELO's."""

from __future__ import annotations

import numpy as np

from pit_jax.evaluation import intervals, logistic
from pit_jax.evaluation.elo import Ratings, matches

RESAMPLES = 1000


def ratings(
    pairs_Q2,
    outcomes_QN,
    groups: intervals.Groups = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratings:
    """Computes ratings by maximum likelihood, on ELO's scale.

    By the model of Bradley and Terry (1952), a model of rating r wins against one of rating s with
    the chance 1 / (1 + 10^((s - r) / 400)); a tie counts as half a win of each. The mean of all
    ratings is 1000. Unlike ELO they depend on no order of the matches, and are where ELO would end
    after ever more of them. A normal prior with a deviation of 1737 points (10 in log odds) keeps
    the rating of a model that always wins finite.

    The interval is Student's, with the variance of the ratings over resamples of the groups. Where
    the best models win against the others in nearly all groups, nothing says how far apart the two
    sides are; then no model has an interval, for each rating is one against the mean of all.

    Args:
      pairs_Q2: model indices of each pairing; every index 0..M-1 occurs.
      outcomes_QN: verdicts for the first model of each pair, by row.
      groups: the group of each row; see `intervals.group_numbers`.
      seed: of the resamples.
      resamples: how many there are.
    """
    pairs_Q2, outcomes_QN = matches(pairs_Q2, outcomes_QN)
    group_N = intervals.group_numbers(groups, outcomes_QN.shape[1])
    won_GQ = np.stack([intervals.by_group((row + 1) / 2, group_N)[0] for row in outcomes_QN], 1)
    sizes_G = np.bincount(group_N)
    rating = _fit(pairs_Q2, won_GQ.sum(axis=0)[None], sizes_G.sum()[None])[0]

    half = np.full(rating.shape, np.nan)
    count = sizes_G.size
    share_GQ = won_GQ / sizes_G[:, None]
    if not intervals.few_differ(share_GQ) and not _is_parted(pairs_Q2, share_GQ, rating):
        drawn_RG = np.random.default_rng(seed).multinomial(count, np.ones(count) / count, resamples)
        variance = _fit(pairs_Q2, drawn_RG @ won_GQ, drawn_RG @ sizes_G).var(axis=0, ddof=1)
        # As that of ELO's: a resample's variance is that of a population of G.
        half = intervals.t_quantile(count) * np.sqrt(variance * count / (count - 1))
    return Ratings(rating=rating, low=rating - half, high=rating + half)


def _is_parted(pairs_Q2, share_GQ, rating_M) -> bool:
    """Whether some of the best models win all against all others, but for too few of the groups.

    The likelihood has a maximum where no models are so (Ford, 1957). Where every two models meet,
    such models have the highest ratings, so other sets needn't be looked at.
    """
    for lowest in np.unique(rating_M)[1:]:
        first_Q, second_Q = (rating_M >= lowest)[pairs_Q2.T]
        lost_GQ = (first_Q & ~second_Q & (share_GQ < 1)) | (second_Q & ~first_Q & (share_GQ > 0))
        if lost_GQ.any(axis=1).sum() < intervals.DIFFERENT:
            return True
    return False


def _fit(pairs_Q2, won_RQ, rows_R) -> np.ndarray:
    """The ratings [R, M] of R sets of so many rows, by how often the first of a pair won."""
    models = np.arange(pairs_Q2.max() + 1)
    sides_QM = 1.0 * (pairs_Q2[:, :1] == models) - (pairs_Q2[:, 1:] == models)
    count_RQ = np.broadcast_to(rows_R[:, None], won_RQ.shape)
    # The prior alone fixes where the mean is, at 0.
    log_odds_RM, _ = logistic.fit(sides_QM, won_RQ, count_RQ)
    return 1000.0 + log_odds_RM * 400.0 / np.log(10.0)
