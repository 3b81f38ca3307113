"""Computes ELO ratings of models from verdicts on their responses (Table 3)."""

from __future__ import annotations

import dataclasses

import numpy as np

from pit_jax.evaluation import intervals

RESAMPLES = 1000
# Orders in which each resample is played.
_ORDERS = 4
# Matches of all orders that are held at once, and those of each order that are looked up at once.
_CHUNK_ELEMENTS = 1 << 25
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Holds ratings [M] of M models in the order given, and their 95% intervals.

    Intervals are NaN where nearly all groups have the same verdicts, which says too little; ELO's
    of a model where it is so of the verdicts on that model.
    """

    rating: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """The rank of each model, [M]; 1 is the best."""
        return 1 + (self.rating[None, :] > self.rating[:, None]).sum(axis=1)


def matches(pairs_Q2, outcomes_QN) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairings and verdicts as arrays.

    Raises:
      ValueError: if their shapes don't fit, or there is no match.
    """
    pairs_Q2, outcomes_QN = np.asarray(pairs_Q2), np.asarray(outcomes_QN)
    if outcomes_QN.ndim != 2 or pairs_Q2.shape != (outcomes_QN.shape[0], 2):
        raise ValueError(
            f"expected pairs [Q, 2] and outcomes [Q, N], got {pairs_Q2.shape}, {outcomes_QN.shape}"
        )
    if outcomes_QN.size == 0:
        raise ValueError("expected at least one comparison, got none")
    return pairs_Q2, outcomes_QN


def elo_ratings(
    pairs_Q2,
    outcomes_QN,
    groups: intervals.Groups = None,
    shuffles: int = 100,
    seed: int = 0,
    k: float = 4.0,
    initial: float = 1000.0,
    resamples: int = RESAMPLES,
) -> Ratings:
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
    pairs_Q2, outcomes_QN = matches(pairs_Q2, outcomes_QN)
    num_rows = outcomes_QN.shape[1]
    rng = np.random.default_rng(seed)
    rows_SN = np.broadcast_to(np.arange(num_rows), (shuffles, num_rows))
    rating = _play(rng, pairs_Q2, outcomes_QN, rows_SN, k, initial).mean(axis=0)

    group_N = intervals.group_numbers(groups, num_rows)
    patterns_GQ = np.stack([np.divide(*intervals.by_group(row, group_N)) for row in outcomes_QN], 1)
    half = np.full(rating.shape, np.nan)
    plays_MQ = [(pairs_Q2 == m).any(axis=1) for m in range(rating.size)]
    told_M = [not intervals.few_differ(patterns_GQ[:, plays_Q]) for plays_Q in plays_MQ]
    if any(told_M):
        rows_RN = np.stack([intervals.draw_rows(rng, group_N) for _ in range(resamples)])
        rows_SN = np.repeat(rows_RN, _ORDERS, axis=0)
        played = _play(rng, pairs_Q2, outcomes_QN, rows_SN, k, initial)
        within, between = split_variance(played.reshape(resamples, _ORDERS, -1))
        num_groups = patterns_GQ.shape[0]
        # A resample's variance is that of a population of G, as a sample's is with G in place of
        # G - 1.
        variance = between * num_groups / (num_groups - 1) + within / shuffles
        half = np.where(told_M, intervals.t_quantile(num_groups) * np.sqrt(variance), np.nan)
    return Ratings(rating=rating, low=rating - half, high=rating + half)


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
    num_pairs = len(pairs_Q2)
    # Matches of one pair with one verdict are alike, so an order is one of these few kinds.
    kinds_QN = 3 * np.arange(num_pairs)[:, None] + outcomes_QN + 1
    small = np.min_scalar_type(3 * num_pairs)
    parts = []
    chunk = max(1, _CHUNK_ELEMENTS // outcomes_QN.size)
    for start in range(0, len(rows_SN), chunk):
        rows_CN = rows_SN[start : start + chunk]
        order_CT = np.empty((len(rows_CN), outcomes_QN.size), small)
        for order_T, rows_N in zip(order_CT, rows_CN, strict=True):
            kinds_T = kinds_QN[:, rows_N].reshape(-1)
            rng.shuffle(kinds_T)
            order_T[:] = kinds_T
        parts.append(_play_in_order(pairs_Q2, np.ascontiguousarray(order_CT.T), k, initial))
    return np.concatenate(parts)


def _play_in_order(pairs_Q2, order_TS, k: float, initial: float) -> np.ndarray:
    """Plays T matches one after another, in S orders at once; returns the last ratings [S, M].

    Ratings are kept in units of 400 / log(10) points above `initial`, in which the expected share
    is 1 / (1 + e^-difference); k is in them too. A kind of match is 3 q + verdict + 1.
    """
    num_orders = order_TS.shape[1]
    unit = 400.0 / np.log(10.0)
    stake = k / unit
    first_K, second_K = np.repeat(pairs_Q2.T * num_orders, 3, axis=1).astype(np.intp)
    gain_K = np.tile([0.0, stake / 2, stake], len(pairs_Q2))
    ratings_MS = np.zeros((int(pairs_Q2.max()) + 1, num_orders))
    flat, offsets_S = ratings_MS.reshape(-1), np.arange(num_orders)
    for start in range(0, len(order_TS), _BLOCK):
        kinds_BS = order_TS[start : start + _BLOCK].astype(np.intp)
        first_BS = first_K.take(kinds_BS) + offsets_S
        second_BS = second_K.take(kinds_BS) + offsets_S
        for a_S, b_S, gain_S in zip(first_BS, second_BS, gain_K.take(kinds_BS), strict=True):
            rating_a_S, rating_b_S = flat.take(a_S), flat.take(b_S)
            change_S = gain_S - stake / (1.0 + np.exp(rating_b_S - rating_a_S))
            flat[a_S] = rating_a_S + change_S
            flat[b_S] = rating_b_S - change_S
    return initial + unit * ratings_MS.T
