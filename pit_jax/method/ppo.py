"""Has the settings and the mathematics of PPO for token sequences, which `ppo_step` combines.

Every statistic is masked: tokens after EOS never count.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from pit_jax.checked import at_least, checked
from pit_jax.runtime.train_state import OptimizerConfig

CRITIC_STARTS = ("reward", "actor")


@dataclasses.dataclass(frozen=True)
@checked
class PPOConfig:
    """Sets PPO; the defaults follow the practice of TRL and OpenAI's lm-human-preferences.

    Attributes:
      beta: weight of the KL penalty.
      target_kl: if set, beta adapts towards this KL per episode, in nats.
      horizon: episodes over which the adaptive controller moves.
      gamma: discount.
      gae_lambda: λ of generalised advantage estimation.
      clip: range of the probability ratio.
      value_clip: range of the value's change.
      value_coefficient: weight of the value loss.
      epochs: passes over each batch of episodes.
      minibatches: parts of a batch, reshuffled each epoch; each gives one gradient step.
      microbatches: parts of a minibatch whose gradients are added up; each is of episodes of like
        lengths.
      widths: how many widths, in equal steps, the programs have for rows of a prompt and a
        response, each compiled by itself; with 1 every row has its full windows. On a CPU deep
        networks have fewer, see `widths.affordable`.
      missing_eos_penalty: score of a response that didn't end within its window, in standard
        deviations from the mean score of all that did in the steps before; below 0.
      subtract_chosen: whether the score of y_w, a constant of each prompt, is subtracted from each
        episode's score (an option that helps small models).
      scale_rewards: whether scores are divided by their running standard deviation.
      scale_floor: least standard deviation to divide by.
      critic_learning_rate: peak of the critic, whose schedule has the shape of the actor's; None
        takes the actor's own.
      critic_warmup: PPO steps in which the critic learns and the actor stays as it is.
      critic_start: `reward` starts the critic from the reward model, `actor` from the actor with a
        zero head.
      temperature: one temperature for sampling and for all log-probabilities.
    """

    beta: float = 0.05
    target_kl: float | None = None
    horizon: int = 10_000
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    epochs: int = 4
    minibatches: int = 4
    microbatches: int = dataclasses.field(default=1, metadata={"since": 2})
    widths: int = dataclasses.field(
        default=4, metadata={"changes_result": False, "variation": True}
    )
    missing_eos_penalty: float = -1.0
    subtract_chosen: bool = False
    scale_rewards: bool = False
    scale_floor: float = 0.1
    critic_learning_rate: float | None = dataclasses.field(
        default=None, metadata={"may_be_lowered": True}
    )
    critic_warmup: int = 0
    critic_start: str = "reward"
    temperature: float = 1.0

    def __post_init__(self):
        if self.critic_start not in CRITIC_STARTS:
            raise ValueError(
                f"PPOConfig: got critic_start={self.critic_start!r}, expected one of "
                f"{CRITIC_STARTS}"
            )
        if self.temperature <= 0:
            raise ValueError("PPOConfig: temperature must be above 0, PPO samples its episodes")
        if self.missing_eos_penalty >= 0:
            raise ValueError(
                f"PPOConfig: got missing_eos_penalty={self.missing_eos_penalty}, expected below 0"
            )
        if self.critic_warmup < 0:
            raise ValueError(f"PPOConfig: got critic_warmup={self.critic_warmup}, expected >= 0")
        ranges = ("clip", "value_clip", "value_coefficient", "scale_floor")
        at_least(self, 0, "beta", "gamma", "gae_lambda", *ranges)
        at_least(self, 1, "horizon")
        for field in ("gamma", "gae_lambda"):
            if getattr(self, field) > 1:
                raise ValueError(f"PPOConfig: got {field}={getattr(self, field)}, expected 0 to 1")
        for field in ("epochs", "minibatches", "microbatches", "widths"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"PPOConfig: got {field}={getattr(self, field)}, expected 1 or more"
                )

    @property
    def parts(self) -> int:
        """The number of parts of a batch that pass through the network one after the other."""
        return self.minibatches * self.microbatches


def make_optimizer(config: OptimizerConfig, ppo: PPOConfig) -> optax.GradientTransformation:
    """The optimizer of {'actor', 'critic'}: clipped apart, each with its own learning rate.

    A critic whose gradient is large would otherwise take the actor's share of the clipping norm.
    The actor's steps are 0 while the critic warms up; its moments are kept up all the while.
    """
    rate, own = config.learning_rate, ppo.critic_learning_rate
    if own and not rate:  # the critic alone learns
        config = dataclasses.replace(config, learning_rate=own)
    share = 1.0 if rate or not own else 0.0
    critic = 1.0 if own is None else own / (rate or own or 1.0)
    wait = ppo.critic_warmup * ppo.epochs * ppo.minibatches

    def update(updates, count, params=None):
        del params
        actor = jnp.where(count < wait, 0.0, share) if wait else share
        factors = {"actor": actor, "critic": critic}
        scaled = {
            name: jax.tree.map(lambda x, f=factors[name]: x * f, part)
            for name, part in updates.items()
        }
        return scaled, count + 1

    scale = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    return optax.chain(config.build(clip_apart=True), scale)


class Experience(flax.struct.PyTreeNode):
    """Holds a batch of episodes; prompts are left-padded, responses right-padded.

    Attributes:
      prompt_BP: int32, the prompts that the actor saw.
      critic_prompt_BQ: int32, these prompts in the critic's layout (Q tokens).
      response_BR: int32 tokens, EOS included.
      mask_BR: float32, 1 on real tokens.
      log_probs_BR: float32, log-probabilities of the tokens under the actor that sampled them.
      values_BR: float32, the critic's value of the state before each token.
      rewards_BR: float32, −β·k1 of each token; at the last real token the score is added.
    """

    prompt_BP: jax.Array
    critic_prompt_BQ: jax.Array
    response_BR: jax.Array
    mask_BR: jax.Array
    log_probs_BR: jax.Array
    values_BR: jax.Array
    rewards_BR: jax.Array


@flax.struct.dataclass
class Moments:
    """Keeps the running count, mean and squared deviations of scores (Chan et al., 1979)."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    @classmethod
    def zero(cls) -> Moments:
        """Makes the moments of no scores, in three separate float32 buffers."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    def add(self, scores_B: jax.Array, counts_B: jax.Array) -> Moments:
        """Returns the moments after further scores, of which those with `counts_B` count."""
        weight_B = counts_B.astype(jnp.float32)
        n = jnp.sum(weight_B)
        mean = jnp.sum(scores_B * weight_B) / jnp.maximum(n, 1)
        total = jnp.maximum(self.count + n, 1)
        delta = mean - self.mean
        squares = self.squares + jnp.sum(jnp.square(scores_B - mean) * weight_B)
        squares += jnp.square(delta) * self.count * n / total
        return Moments(self.count + n, self.mean + delta * n / total, squares)

    def std(self, floor: float) -> jax.Array:
        """Returns the standard deviation, or `floor` if that is larger."""
        return jnp.maximum(jnp.sqrt(self.squares / jnp.maximum(self.count, 1.0)), floor)


def masked_mean(x_BR: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """Takes the mean over real tokens."""
    return jnp.sum(x_BR * mask_BR) / jnp.maximum(jnp.sum(mask_BR), 1.0)


def shape_scores(scores_B, ended_B, moments: Moments, config: PPOConfig):
    """Makes the scores that PPO maximises of the reward model's scores.

    A response that didn't end scores `missing_eos_penalty` standard deviations from the mean of all
    that did in the steps before; in the first step, of those beside it. Whatever a reward model's
    unit and origin, that is worse than most of them.

    Args:
      scores_B: the reward model's scores above what counts as 0 for their prompts, float32.
      ended_B: bool, whether the response ended within its window.
      moments: moments of the scores of ended responses before these.
      config: PPO's settings.

    Returns:
      scores_B, and the moments after these scores.
    """
    before, moments = moments, moments.add(scores_B, ended_B)
    # Those of the steps before, so that a row's score doesn't depend on the rows beside it.
    of_ended = jax.tree.map(functools.partial(jnp.where, before.count > 0), before, moments)
    unended = of_ended.mean + config.missing_eos_penalty * of_ended.std(config.scale_floor)
    scores_B = jnp.where(ended_B, scores_B, unended)
    std = moments.std(config.scale_floor)
    return scores_B / std if config.scale_rewards else scores_B, moments


def whiten(x_BR: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """Shifts and scales to mean 0 and variance 1 over real tokens of the global batch."""
    mean = masked_mean(x_BR, mask_BR)
    variance = masked_mean(jnp.square(x_BR - mean), mask_BR)
    return (x_BR - mean) * jax.lax.rsqrt(variance + 1e-8) * mask_BR


def kl_estimates(log_probs_BR: jax.Array, ref_log_probs_BR: jax.Array):
    """Computes two estimators of KL(π ‖ π_ref) for each token (Schulman, 2020).

    Returns:
      k1 = log π − log π_ref, unbiased, and k3 = exp(−k1) − 1 + k1, unbiased and never negative.
    """
    k1_BR = log_probs_BR - ref_log_probs_BR
    return k1_BR, jnp.exp(-k1_BR) - 1 + k1_BR


def token_rewards(k1_BR: jax.Array, scores_B: jax.Array, mask_BR: jax.Array, beta) -> jax.Array:
    """Gives each token `−β·k1` and adds the score at the last real token (Eqs. 3 to 5)."""
    last_BR = mask_BR * (jnp.cumsum(mask_BR, axis=1) == jnp.sum(mask_BR, axis=1, keepdims=True))
    return -beta * k1_BR * mask_BR + scores_B[:, None] * last_BR


def gae(
    rewards_BR: jax.Array, values_BR: jax.Array, mask_BR: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Estimates generalised advantages (Schulman et al., 2016); the value after the end is 0.

    Returns:
      advantages_BR (not whitened) and returns_BR = advantages + values, both 0 off the mask.
    """
    values_BR = values_BR * mask_BR
    next_BR = jnp.pad(values_BR[:, 1:], ((0, 0), (0, 1)))
    delta_BR = (rewards_BR + gamma * next_BR - values_BR) * mask_BR

    def backward(advantage_B, inputs):
        delta_B, mask_B = inputs
        advantage_B = (delta_B + gamma * lam * advantage_B) * mask_B
        return advantage_B, advantage_B

    start_B = jnp.zeros(rewards_BR.shape[0], rewards_BR.dtype)
    _, advantages_RB = jax.lax.scan(backward, start_B, (delta_BR.T, mask_BR.T), reverse=True)
    return advantages_RB.T, (advantages_RB.T + values_BR) * mask_BR


def adapt_beta(beta, kl, config: PPOConfig, episodes: int):
    """Moves β towards the KL target, if there is one (Ziegler et al., 2019).

    It computes `β ← β (1 + clip(KL/target − 1, ±0.2) · n / horizon)`; without a target β is fixed.
    """
    if config.target_kl is None:
        return beta
    error = jnp.clip(kl / config.target_kl - 1, -0.2, 0.2)
    return beta * (1 + error * episodes / config.horizon)


def explained_variance(values_BR: jax.Array, returns_BR: jax.Array, mask_BR: jax.Array):
    """Computes `1 − Var(R − V) / Var(R)` over real tokens: 1 if V is perfect, 0 if constant."""

    def variance(x_BR):
        return masked_mean(jnp.square(x_BR - masked_mean(x_BR, mask_BR)), mask_BR)

    return 1 - variance(returns_BR - values_BR) / jnp.maximum(variance(returns_BR), 1e-8)
