"""Computes ELO ratings of models from verdicts on their responses (Table 3)."""

from __future__ import annotations

import dataclasses

import numpy as np

from pit_jax.evaluation import intervals

RESAMPLES = 1000
# Orders in which each resample is played.
_ORDERS = 4
_CHUNK_ELEMENTS = 1 << 24


@dataclasses.dataclass(frozen=True)
class EloRatings:
    """Holds ratings [M] of M models in the order given, their 95% intervals, ranks (1 is best).

    Intervals are NaN where nearly all groups have the same verdicts, which says too little.
    """

    rating: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rank: np.ndarray


def elo_ratings(
    pairs_Q2,
    outcomes_QN,
    groups: intervals.Groups = None,
    shuffles: int = 100,
    seed: int = 0,
    k: float = 4.0,
    initial: float = 1000.0,
    resamples: int = RESAMPLES,
) -> EloRatings:
    """Computes ELO ratings, averaged over orders of the comparisons.

    A rating depends on the order in which matches are played, so it is averaged over S random
    orders of all Q x N matches. Its variance is that of the groups, P = Var(E[rating | groups]),
    and that of an order, O = E[Var(rating | groups)], of which a mean over S orders keeps O / S.
    R resamples of the groups, in m orders each, estimate both without bias: the mean variance
    within resamples is O, and the variance of the resamples' means is P + O / m. That takes R m
    orders in place of R S. The interval is Student's with the variance P + O / S.

    Args:
      pairs_Q2: model indices of each pairing; every index 0..M-1 occurs.
      outcomes_QN: verdicts for the first model of each pair, by row.
      groups: the group of each row; see `intervals.group_numbers`.
      shuffles: S, number of orders.
      seed: seed of the orders and resamples.
      k: points at stake in one match.
      initial: rating at the start, and so the mean of all ratings.
      resamples: R.
    """
    pairs_Q2, outcomes_QN = np.asarray(pairs_Q2), np.asarray(outcomes_QN)
    if outcomes_QN.ndim != 2 or pairs_Q2.shape != (outcomes_QN.shape[0], 2):
        raise ValueError(
            f"expected pairs [Q, 2] and outcomes [Q, N], got {pairs_Q2.shape}, {outcomes_QN.shape}"
        )
    if outcomes_QN.size == 0:
        raise ValueError("expected at least one comparison, got none")
    num_rows = outcomes_QN.shape[1]
    rng = np.random.default_rng(seed)
    rows_SN = np.broadcast_to(np.arange(num_rows), (shuffles, num_rows))
    rating = _play(rng, pairs_Q2, outcomes_QN, rows_SN, k, initial).mean(axis=0)
    rank = 1 + (rating[None, :] > rating[:, None]).sum(axis=1)

    group_N = intervals.group_numbers(groups, num_rows)
    patterns_GQ = np.stack([np.divide(*intervals.by_group(row, group_N)) for row in outcomes_QN], 1)
    half = np.full(rating.shape, np.nan)
    if not intervals.few_differ(patterns_GQ):
        rows_RN = np.stack([intervals.draw_rows(rng, group_N) for _ in range(resamples)])
        rows_SN = np.repeat(rows_RN, _ORDERS, axis=0)
        played = _play(rng, pairs_Q2, outcomes_QN, rows_SN, k, initial)
        within, between = split_variance(played.reshape(resamples, _ORDERS, -1))
        num_groups = patterns_GQ.shape[0]
        # A resample's variance is that of a population of G, as a sample's is with G in place of
        # G - 1.
        variance = between * num_groups / (num_groups - 1) + within / shuffles
        half = intervals.t_quantile(num_groups) * np.sqrt(variance)
    return EloRatings(rating=rating, low=rating - half, high=rating + half, rank=rank)


def split_variance(values_RmM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates the variance [M] within R samples of m values each, and that of their true means.

    The second is what the variance of the samples' means has over what those within account for,
    and at least 0.
    """
    within = values_RmM.var(axis=1, ddof=1).mean(axis=0)
    between = values_RmM.mean(axis=1).var(axis=0, ddof=1) - within / values_RmM.shape[1]
    return within, np.maximum(between, 0.0)


def _play(rng, pairs_Q2, outcomes_QN, rows_SN, k: float, initial: float) -> np.ndarray:
    """Plays the matches of S lists of rows, each in an order of its own: last ratings [S, M]."""
    num_pairs, num_rows = outcomes_QN.shape
    first = np.repeat(pairs_Q2[:, 0], num_rows)
    second = np.repeat(pairs_Q2[:, 1], num_rows)
    won = (outcomes_QN.reshape(-1) + 1) / 2.0
    starts_Q = np.arange(num_pairs, dtype=np.int32) * num_rows
    parts = []
    chunk = max(1, _CHUNK_ELEMENTS // won.size)
    for start in range(0, len(rows_SN), chunk):
        rows = rows_SN[start : start + chunk].astype(np.int32)
        matches_ST = (starts_Q[None, :, None] + rows[:, None, :]).reshape(len(rows), -1)
        for matches in matches_ST:
            rng.shuffle(matches)
        order_TS = np.ascontiguousarray(matches_ST.T)
        parts.append(_play_in_order(first, second, won, order_TS, k, initial))
    return np.concatenate(parts)


def _play_in_order(first, second, won, order_TS, k: float, initial: float) -> np.ndarray:
    """Plays T matches one after another, in S orders at once; returns the last ratings [S, M]."""
    rows = np.arange(order_TS.shape[1])
    ratings_MS = np.full((int(max(first.max(), second.max())) + 1, rows.size), float(initial))
    flat, offsets = ratings_MS.reshape(-1), rows
    for match_S in order_TS:
        a_S = first[match_S] * rows.size + offsets
        b_S = second[match_S] * rows.size + offsets
        rating_a_S, rating_b_S = flat[a_S], flat[b_S]
        expected_S = 1.0 / (1.0 + 10.0 ** ((rating_b_S - rating_a_S) / 400.0))
        change_S = k * (won[match_S] - expected_S)
        flat[a_S] = rating_a_S + change_S
        flat[b_S] = rating_b_S - change_S
    return ratings_MS.T
