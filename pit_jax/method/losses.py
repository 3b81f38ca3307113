"""Computes the losses of supervised fine-tuning, reward models and PPO, by pure functions.

Every loss returns `(sum, weight)`; the division happens once, after all microbatches and hosts.
Equation numbers are the paper's (ICLR 2024, arXiv 2310.00898).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data.layouts import GAP_INEQUALITIES

NEVER = -1e30  # logit of an id that may not be sampled
Weighted = tuple[jax.Array, jax.Array]

GAP_LOSSES = ("eq2", "two_term", "pointwise")


def allow(logits: jax.Array, allowed_V: np.ndarray | None) -> jax.Array:
    """Logits [..., V] that give no probability to ids that may not be sampled.

    Sampling and teacher-forced log-probabilities both go through here, so that they are of one
    distribution. The value is finite, for an entropy without nan.

    Args:
      logits: float32.
      allowed_V: bool, False for padding, control tokens and rows beyond the vocabulary; None allows
        every id.
    """
    return logits if allowed_V is None else jnp.where(allowed_V, logits, NEVER)


def token_log_probs(
    logits_BTV: jax.Array, tokens_BT: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """Computes each token's log-probability, float32 [B, T], in nats.

    Args:
      logits_BTV: float32 logits.
      tokens_BT: int32 tokens, one for each column of logits.
      temperature: what the logits are divided by; 0 (greedy decoding) counts as 1.
    """
    return _log_probs(_tempered(logits_BTV, temperature), tokens_BT)


def token_entropy(logits_BTV: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Computes each distribution's entropy, float32 [B, T], in nats; see `token_log_probs`."""
    log_p_BTV = jax.nn.log_softmax(_tempered(logits_BTV, temperature), axis=-1)
    return -jnp.sum(jnp.exp(log_p_BTV) * log_p_BTV, axis=-1)


def _tempered(logits_BTV, temperature):
    return logits_BTV if temperature in (0, 1) else logits_BTV / temperature


@jax.custom_vjp
def _log_probs(logits_BTV, tokens_BT):
    return _log_probs_forward(logits_BTV, tokens_BT)[0]


def _log_probs_forward(logits_BTV, tokens_BT):
    """Keeps the logits alone, and not their softmax too."""
    most_BT1 = jnp.max(logits_BTV, axis=-1, keepdims=True)
    log_sum_BT = jnp.log(jnp.sum(jnp.exp(logits_BTV - most_BT1), axis=-1))
    own_BT1 = jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1)
    log_probs_BT = (own_BT1 - most_BT1)[..., 0] - log_sum_BT
    return log_probs_BT, (logits_BTV, tokens_BT, most_BT1[..., 0] + log_sum_BT)


def _log_probs_backward(residuals, cotangent_BT):
    logits_BTV, tokens_BT, log_sum_BT = residuals
    is_own_BTV = jax.nn.one_hot(tokens_BT, logits_BTV.shape[-1])
    probability_BTV = jnp.exp(logits_BTV - log_sum_BT[..., None])
    return cotangent_BT[..., None] * (is_own_BTV - probability_BTV), None


_log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def sft_loss(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    unlikelihood: bool = False,
) -> Weighted:
    """Adds up `-log M(y | …)` over target tokens (3.2).

    Args:
      logits_BTV: float32 logits.
      targets_BT: int32 target tokens.
      weights_BT: float32, 1 on target tokens and 0 elsewhere.
      unlikelihood: whether there are tokens of negative weight, which are unlikely targets instead:
        `-log(1 - M(y | …))` times the weight's size (the option the paper discusses in 3.2). Both
        kinds count in the mean, since a batch may hold one alone. It takes a second pass over the
        logits, hence the static switch.

    Returns:
      (sum, weight): nats, number of target tokens.
    """
    log_probs_BT = token_log_probs(logits_BTV, targets_BT)
    if not unlikelihood:
        return -jnp.sum(weights_BT * log_probs_BT), jnp.sum(weights_BT)
    # log(1 - p) as a ratio of sums: exact, with a gradient, however close p is to 1.
    is_target_BTV = jax.nn.one_hot(targets_BT, logits_BTV.shape[-1], dtype=bool)
    others_BTV = jnp.where(is_target_BTV, -jnp.inf, logits_BTV)
    unlikely_BT = jax.nn.logsumexp(others_BTV, axis=-1) - jax.nn.logsumexp(logits_BTV, axis=-1)
    likely_BT = jnp.maximum(weights_BT, 0)
    total = likely_BT * log_probs_BT + jnp.maximum(-weights_BT, 0) * unlikely_BT
    return -jnp.sum(total), jnp.sum(jnp.abs(weights_BT))


def pairwise_loss(chosen_B: jax.Array, rejected_B: jax.Array, weight_B: jax.Array) -> Weighted:
    """Adds up `-log σ(r_w − r_l)` over rows (3.3).

    Args:
      chosen_B: scores of y_w.
      rejected_B: scores of y_l.
      weight_B: 0 for rows that only fill the batch.
    """
    return -jnp.sum(jax.nn.log_sigmoid(chosen_B - rejected_B) * weight_B), jnp.sum(weight_B)


def gap_loss(scores: dict[str, jax.Array], weight_B: jax.Array, kind: str = "eq2") -> Weighted:
    """Adds up the gap reward's loss over rows.

    The kind `eq2` is Eq. 2, for r_ab = R_PIT(x, y_a, y_b):

        −[log σ(r_wl − r_ww) + log σ(r_wl − r_ll) + log σ(r_wl − r_lw)
          + log σ(r_ww − r_lw) + log σ(r_ll − r_lw)]

    The others are the paper's ablations (Appendix C): `two_term` keeps only `log σ(r_wl − r_lw)`;
    `pointwise` is the mean squared error to 1 (wl), 0.5 (ww, ll) and 0 (lw).

    Args:
      scores: r_ab [B] under the keys wl, ww, ll, lw.
      weight_B: 0 for rows that only fill the batch.
      kind: one of GAP_LOSSES.

    Raises:
      ValueError: if `kind` is unknown.
    """
    loss_B: jax.Array | float
    if kind == "eq2":
        loss_B = -sum(jax.nn.log_sigmoid(scores[a] - scores[b]) for a, b in GAP_INEQUALITIES)
    elif kind == "two_term":
        loss_B = -jax.nn.log_sigmoid(scores["wl"] - scores["lw"])
    elif kind == "pointwise":
        goals = {"wl": 1.0, "ww": 0.5, "ll": 0.5, "lw": 0.0}
        loss_B = sum(jnp.square(scores[name] - goal) for name, goal in goals.items()) / len(goals)
    else:
        raise ValueError(f"gap loss: got {kind!r}, expected one of {GAP_LOSSES}")
    return jnp.sum(loss_B * weight_B), jnp.sum(weight_B)


def reference_moves_score(
    scores: Mapping[str, Any], weight_B: jax.Array | float = 1.0
) -> tuple[Any, Any]:
    """Measures how far scores move if only the reference is swapped (Appendix C's degeneration).

        (|r_wl − r_ww| + |r_ll − r_lw|) / |r_wl − r_lw|

    It is 0 for a model that ignores the reference, and 1 for a gap that is a difference of two
    scores, f(y) − f(y_ref).

    Args:
      scores: r_ab [B] under the keys wl, ww, ll, lw, of NumPy or of JAX.
      weight_B: 0 for rows that only fill the batch.

    Returns:
      (sum, weight): numerator and denominator, each summed over the rows.
    """
    moved_B = abs(scores["wl"] - scores["ww"]) + abs(scores["ll"] - scores["lw"])
    spread_B = abs(scores["wl"] - scores["lw"])
    return (moved_B * weight_B).sum(), (spread_B * weight_B).sum()


def centring_penalty(scores_NB: jax.Array, weight_B: jax.Array) -> Weighted:
    """Adds up squared scores, which keeps a small model's scores around 0; off by default.

    A loss of differences alone leaves the scores' offset free (Eisenstein et al., 2023).
    """
    squares = jnp.sum(jnp.square(scores_NB) * weight_B[None])
    return squares, jnp.sum(weight_B) * scores_NB.shape[0]


def ppo_policy_loss(
    log_probs_BR: jax.Array,
    old_log_probs_BR: jax.Array,
    advantages_BR: jax.Array,
    mask_BR: jax.Array,
    clip: float,
) -> tuple[Weighted, dict[str, Weighted]]:
    """Adds up `max(−Aρ, −A clip(ρ, 1 ± clip))` over real tokens (Schulman et al., 2017).

    Returns:
      (sum, weight) and metrics: ratio and its square, share of clipped tokens, approximate KL
      `½ (log ρ)²`.
    """
    # A ratio beyond e^20 is past saving, but an infinite one would turn the gradient into nan.
    log_ratio_BR = jnp.clip((log_probs_BR - old_log_probs_BR) * mask_BR, -20, 20)
    ratio_BR = jnp.exp(log_ratio_BR)
    plain_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * jnp.clip(ratio_BR, 1 - clip, 1 + clip)
    weight = jnp.sum(mask_BR)
    loss = jnp.sum(jnp.maximum(plain_BR, clipped_BR) * mask_BR)
    metrics = {
        "ratio": jnp.sum(ratio_BR * mask_BR),
        "ratio_squared": jnp.sum(jnp.square(ratio_BR) * mask_BR),
        "policy_clip_fraction": jnp.sum((clipped_BR > plain_BR) * mask_BR),
        "approx_kl": 0.5 * jnp.sum(jnp.square(log_ratio_BR) * mask_BR),
    }
    return (loss, weight), {name: (total, weight) for name, total in metrics.items()}


def ppo_value_loss(
    values_BR: jax.Array,
    old_values_BR: jax.Array,
    returns_BR: jax.Array,
    mask_BR: jax.Array,
    clip: float,
) -> tuple[Weighted, dict[str, Weighted]]:
    """Adds up `½ max((V−R)², (clip(V, V_old ± clip)−R)²)` over real tokens."""
    clipped_BR = jnp.clip(values_BR, old_values_BR - clip, old_values_BR + clip)
    plain_error_BR = jnp.square(values_BR - returns_BR)
    clipped_error_BR = jnp.square(clipped_BR - returns_BR)
    weight = jnp.sum(mask_BR)
    loss = 0.5 * jnp.sum(jnp.maximum(plain_error_BR, clipped_error_BR) * mask_BR)
    fraction = jnp.sum((clipped_error_BR > plain_error_BR) * mask_BR)
    return (loss, weight), {"value_clip_fraction": (fraction, weight)}
