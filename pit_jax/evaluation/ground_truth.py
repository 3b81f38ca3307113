"""Compares verdicts with those of another judge: of an exact checker, where the data has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pit_jax.evaluation import intervals
from pit_jax.evaluation.intervals import Groups
from pit_jax.evaluation.judges import Verdicts, known

RESAMPLES = 2000
# Two lists of responses to the same prompts.
Pair = tuple[Sequence[str], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Accord:
    """Holds how far n verdicts agree with others, as true ones; what rows don't tell is NaN.

    Attributes:
      accuracy: share of the verdicts that are the others, ties included.
      ci_low, ci_high: its 95% interval.
      kappa: what the accuracy has over that of chance, of the most that it could have.
      kappa_low, kappa_high: its 95% interval.
      n: number of verdicts.
    """

    accuracy: float
    ci_low: float
    ci_high: float
    kappa: float
    kappa_low: float
    kappa_high: float
    n: int


def accord(
    verdicts, truth, groups: Groups = None, seed: int = 0, resamples: int = RESAMPLES
) -> Accord:
    """Measures how far verdicts [N] are those of an exact checker, or of another judge, [N].

    Kappa is Cohen's (1960), of the three verdicts: with p the accuracy, and q that of verdicts
    which are as frequent but independent of the others, (p - q) / (1 - q). It is NaN where q is
    1. Its interval is Student's, with the variance over resamples of the groups. Neither of two
    judges is before the other: both figures are the same with them exchanged.

    Args:
      verdicts: the judge's.
      truth: the checker's, or the other judge's.
      groups: the group of each; see `intervals.group_numbers`.
      seed: of the bootstraps.
      resamples: how many there are for kappa.
    """
    verdicts_N, truth_N = np.asarray(verdicts, int), np.asarray(truth, int)
    if verdicts_N.ndim != 1 or not verdicts_N.size or verdicts_N.shape != truth_N.shape:
        raise ValueError(
            f"expected a true verdict for each of one or more, got {verdicts_N.shape} and "
            f"{truth_N.shape}"
        )
    group_N = intervals.group_numbers(groups, verdicts_N.size)
    sums_G, sizes_G = intervals.by_group(verdicts_N == truth_N, group_N)
    low, high = intervals.mean(sums_G, sizes_G, (0, 1), seed)
    table_G9 = np.zeros((sizes_G.size, 9))
    np.add.at(table_G9, (group_N, 3 * (verdicts_N + 1) + truth_N + 1), 1)
    thin = intervals.is_thin(sums_G, sizes_G)
    kappas = _with_interval(_kappa, table_G9, seed, 0 if thin else resamples)
    return Accord(float((verdicts_N == truth_N).mean()), low, high, *kappas, verdicts_N.size)


def joint_accord(
    verdicts, groups: Groups = None, seed: int = 0, resamples: int = RESAMPLES
) -> Accord:
    """Measures how far the verdicts [P, N] of P judges, two or more, agree.

    The accuracy is how often two of them agree, on average over every two. Kappa is Fleiss's
    (1971): with p the accuracy, and q that of verdicts which are independent and as frequent as
    those of all judges together, (p - q) / (1 - q). It is NaN where q is 1. Its interval is made as
    that of `accord`.

    Args:
      verdicts: what each judge says.
      groups: the group of each column; see `intervals.group_numbers`.
      seed: of the bootstraps.
      resamples: how many there are for kappa.
    """
    verdicts_PN = np.asarray(verdicts, int)
    if verdicts_PN.ndim != 2 or len(verdicts_PN) < 2 or not verdicts_PN.size:
        raise ValueError(f"expected verdicts of two judges or more, got {verdicts_PN.shape}")
    judges, count = verdicts_PN.shape
    group_N = intervals.group_numbers(groups, count)
    said_N3 = np.stack([(verdicts_PN == v).sum(axis=0) for v in (-1, 0, 1)], axis=1)
    agreed_N = (said_N3 * (said_N3 - 1)).sum(axis=1) / (judges * (judges - 1))
    sums_G, sizes_G = intervals.by_group(agreed_N, group_N)
    low, high = intervals.mean(sums_G, sizes_G, (0, 1), seed)
    told_G5 = np.zeros((sizes_G.size, 5))
    np.add.at(told_G5, group_N, np.column_stack([np.ones(count), agreed_N, said_N3 / judges]))
    thin = intervals.is_thin(sums_G, sizes_G)
    kappas = _with_interval(_joint_kappa, told_G5, seed, 0 if thin else resamples)
    return Accord(float(agreed_N.mean()), low, high, *kappas, count)


def row(
    name: str, judge: Verdicts, checker: Verdicts, pairs: Sequence[Pair], groups: Groups, seed: int
) -> dict[str, Any]:
    """Makes a judge's row: how far it agrees with a checker on responses that differ.

    Args:
      name: the judge's.
      judge, checker: what both say of responses to the same prompts.
      pairs: the responses that are compared.
      groups: the group of each prompt; see `intervals.group_numbers`.
      seed: of the intervals.

    Returns:
      name, and the fields of Accord with None for NaN; nothing but n where no responses differ.
    """
    count = len(pairs[0][0])
    numbers_N = intervals.group_numbers(groups, count)
    differ = np.array([a != b for first, second in pairs for a, b in zip(first, second)])
    if not differ.any():
        return {"name": name, "n": 0}
    said, true = (
        np.concatenate([each(*pair) for pair in pairs])[differ] for each in (judge, checker)
    )
    shared = np.tile(numbers_N, len(pairs))[differ].tolist()
    found = dataclasses.asdict(accord(said, true, shared, seed))
    return {"name": name, **{key: known(value) for key, value in found.items()}}


def _with_interval(
    kappa: Callable[[np.ndarray], np.ndarray], told_GK: np.ndarray, seed: int, resamples: int
) -> tuple[float, float, float]:
    """Kappa of sums over groups, and its interval over resamples of them, NaN without any."""
    groups, half = len(told_GK), float("nan")
    if resamples:
        chance = np.ones(groups) / groups
        drawn_RG = np.random.default_rng(seed).multinomial(groups, chance, resamples)
        deviation = kappa(drawn_RG @ told_GK).std(ddof=1)
        half = intervals.t_quantile(groups) * deviation * np.sqrt(groups / (groups - 1))
    value = float(kappa(told_GK.sum(axis=0)[None])[0])
    return value, float(value - half), float(value + half)


def _joint_kappa(told_R5: np.ndarray) -> np.ndarray:
    """Fleiss's kappa [R] of sums: of rows, of their agreement, of the shares of each verdict."""
    means_R4 = told_R5[:, 1:] / told_R5[:, :1]
    agreed_R, chance_R = means_R4[:, 0], np.sum(means_R4[:, 1:] ** 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance_R < 1, (agreed_R - chance_R) / (1 - chance_R), np.nan)


def _kappa(tables_R9: np.ndarray) -> np.ndarray:
    """Cohen's kappa [R] of tables of counts, judge by checker."""
    tables_R33 = tables_R9.reshape(-1, 3, 3) / tables_R9.sum(axis=1)[:, None, None]
    agreed_R = np.trace(tables_R33, axis1=1, axis2=2)
    chance_R = np.sum(tables_R33.sum(axis=1) * tables_R33.sum(axis=2), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance_R < 1, (agreed_R - chance_R) / (1 - chance_R), np.nan)
