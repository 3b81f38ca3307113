"""Fits logistic regressions, many at once, for Bradley-Terry ratings and for Δ at equal length."""

from __future__ import annotations

import numpy as np

# The precision of the normal prior on each coefficient, whose deviation is 10. It keeps
# coefficients finite where all is won or lost, and moves others by less than a table shows.
PRECISION = 0.01
_STEPS = 100


def fit(features_NK, won_RN, count_RN) -> tuple[np.ndarray, np.ndarray]:
    """Fits R regressions of the same features by maximum likelihood, with a weak prior.

    The log likelihood of one is the sum over N of won log(p) + (count - won) log(1 - p), where
    log(p / (1 - p)) is the product of features and coefficients. Newton's method finds its maximum.

    Args:
      features_NK: K features of each observation.
      won_RN: how often each was won, halves included.
      count_RN: of how many.

    Returns:
      the coefficients [R, K], and their information matrices [R, K, K].
    """
    prior_KK = PRECISION * np.eye(features_NK.shape[1])
    fitted_RK = np.zeros((len(won_RN), features_NK.shape[1]))
    for _ in range(_STEPS):
        chance_RN = chances(features_NK, fitted_RK)
        weight_RN = count_RN * chance_RN * (1 - chance_RN)
        information_RKK = features_NK.T @ (weight_RN[:, :, None] * features_NK) + prior_KK
        slope_RK = (won_RN - count_RN * chance_RN) @ features_NK - fitted_RK @ prior_KK
        step_RK = np.linalg.solve(information_RKK, slope_RK[:, :, None])[:, :, 0]
        # A longer step may end where the logistic function is flat.
        fitted_RK += np.clip(step_RK, -1, 1)
        if np.abs(step_RK).max() < 1e-9:
            break
    return fitted_RK, information_RKK


def chances(features_NK, fitted_RK) -> np.ndarray:
    """The chance [R, N] of each observation by R lists of coefficients."""
    return 1 / (1 + np.exp(-(fitted_RK @ features_NK.T)))
