"""Prompts to episodes: sample, score, and everything PPO needs to know about each token."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from pit_jax.method import ppo
from pit_jax.method.decode import EOS, Generation, SamplingConfig, generate, row_keys
from pit_jax.method.forward import response_log_probs, response_scores, response_values
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.microbatches import split
from pit_jax.runtime.partitioning import constrain_rows
from pit_jax.runtime.train_state import TrainState


class RLState(flax.struct.PyTreeNode):
    """Everything a PPO step changes.

    Attributes:
      train: TrainState of {'actor', 'critic'}.
      beta: weight of the KL penalty.
      moments: of all scores so far, for reward scaling.
    """

    train: TrainState
    beta: jax.Array
    moments: ppo.Moments


def make_ppo_step(
    network: NetworkConfig,
    reward_network: NetworkConfig,
    config: ppo.PPOConfig,
    pooling: str,
    response_length: int,
) -> tuple[Callable, Callable]:
    """The two programs of a PPO step.

    Args:
      network: of the actor (policy or PIT) and its KL reference.
      reward_network: of the reward model and the critic.
      config: PPO's settings.
      pooling: how the reward model's score is read.
      response_length: R.

    Returns:
      collect(state, frozen, batch, key) -> Experience, new state, metrics, Generation; and
      improve(state, experience, key) -> new state, metrics. `frozen` holds the parameters
      {'reference', 'reward'}; `batch` is a batch of RL prompts.
    """
    actor, scalar = LanguageModel(network), ScalarModel(reward_network)

    # Rematerialised, so that the update's forward pass keeps nothing for its backward pass: only
    # then does it compile to the arithmetic of a forward pass, and the first ratio is exactly 1.
    @jax.checkpoint
    def log_probs_fn(params, episodes: ppo.Experience):
        return response_log_probs(
            actor,
            params,
            episodes.prompt_BP,
            episodes.response_BR,
            episodes.mask_BR,
            config.temperature,
        )

    def values_fn(params, episodes: ppo.Experience):
        return response_values(
            scalar, params, episodes.critic_prompt_BQ, episodes.response_BR, episodes.mask_BR
        )

    def collect(state: RLState, frozen, batch, key):
        prompt_BP, critic_prompt_BQ = batch["prompt_tokens"], batch["reward_prompt_tokens"]
        B = prompt_BP.shape[0]
        generation = generate(
            actor,
            state.train.params["actor"],
            prompt_BP,
            row_keys(key, jnp.arange(B)),
            response_length,
            SamplingConfig(temperature=config.temperature),
        )
        mask_BR = generation.mask_BR.astype(jnp.float32)
        unscored = ppo.Experience(
            prompt_BP, critic_prompt_BQ, generation.tokens_BR, mask_BR, *([mask_BR] * 3)
        )
        log_probs_BR, _ = in_parts(
            lambda part: log_probs_fn(state.train.params["actor"], part), unscored, config
        )
        values_BR = in_parts(
            lambda part: values_fn(state.train.params["critic"], part), unscored, config
        )
        ref_log_probs_BR, _ = in_parts(
            lambda part: log_probs_fn(frozen["reference"], part), unscored, config
        )
        raw_B = response_scores(
            scalar, frozen["reward"], critic_prompt_BQ, generation.tokens_BR, mask_BR, pooling
        )
        scores_B, moments, ended_B = shape_scores(
            raw_B, generation, batch, scalar, frozen, state.moments, config, pooling
        )
        k1_BR, k3_BR = ppo.kl_estimates(log_probs_BR, ref_log_probs_BR)
        rewards_BR = ppo.token_rewards(k1_BR, scores_B, mask_BR, state.beta)
        experience = unscored.replace(
            log_probs_BR=log_probs_BR, values_BR=values_BR, rewards_BR=rewards_BR
        )
        kl = jnp.sum(k1_BR * mask_BR) / B
        rows = jnp.float32(B)
        real = jnp.sum(mask_BR) + jnp.sum((prompt_BP != 0).astype(jnp.float32))
        metrics = {
            "score": (jnp.sum(raw_B), rows),
            "shaped_score": (jnp.sum(scores_B), rows),
            "kl": (jnp.sum(k1_BR * mask_BR), rows),
            "kl_k3": (jnp.sum(k3_BR * mask_BR), rows),
            "non_score_reward": (-state.beta * jnp.sum(k1_BR * mask_BR), rows),
            "response_length": (jnp.sum(mask_BR), rows),
            "eos_rate": (jnp.sum(ended_B.astype(jnp.float32)), rows),
            "beta": (state.beta, jnp.float32(1)),
            "tokens": (real, 1.0),
            "real_token_share": (real, jnp.float32(prompt_BP.size + mask_BR.size)),
        }
        beta = ppo.adapt_beta(state.beta, kl, config, B)
        return experience, state.replace(beta=beta, moments=moments), metrics, generation

    def improve(state: RLState, experience: ppo.Experience, key):
        train, metrics = ppo.update(state.train, experience, key, config, log_probs_fn, values_fn)
        return state.replace(train=train), metrics

    return collect, improve


def shape_scores(raw_B, generation: Generation, batch, scalar, frozen, moments, config, pooling):
    """The score PPO maximises, from the reward model's: options, then the missing-EOS penalty."""
    scores_B = raw_B
    if config.subtract_chosen:
        chosen_BR = batch["chosen_tokens"]
        scores_B = scores_B - response_scores(
            scalar,
            frozen["reward"],
            batch["reward_prompt_tokens"],
            chosen_BR,
            chosen_BR != 0,
            pooling,
        )
    moments = moments.add(scores_B)
    if config.scale_rewards:
        scores_B = scores_B / moments.std(config.scale_floor)
    ended_B = jnp.any((generation.tokens_BR == EOS) & generation.mask_BR, axis=1)
    return jnp.where(ended_B, scores_B, config.missing_eos_penalty), moments, ended_B


def in_parts(function: Callable, episodes: ppo.Experience, config: ppo.PPOConfig):
    """Applies a per-episode function in parts of the size that the update uses.

    The same shapes as in the update give the same floating-point results, so the first ratio of
    an update is exactly 1, and no more activations live at once than in the update.
    """
    parts = split(episodes, config.parts)
    out = jax.lax.map(lambda part: function(constrain_rows(part)), parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
