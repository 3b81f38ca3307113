"""Does a PPO step, all on this page: episodes, their rewards, the update (3.4; Eqs. 3 to 5).

From top to bottom the step has:

1. a response to each prompt, sampled at one temperature, which also divides the logits of every
   log-probability here; those of the episodes are computed by the update's own function, so the
   first ratio is exactly 1;
2. per token `−β·k1`, the KL penalty towards the supervised model, and at the last token the score;
3. where a response didn't end, a score below the others' in place of its own; what follows EOS
   counts nowhere;
4. generalised advantage estimation, and advantages whitened over the whole batch;
5. clipped policy and value losses, summed into one, in epochs of reshuffled minibatches;
6. a critic that is a network of its own, and an optimizer that clips the gradients of each apart;
7. metrics as (sum, weight) pairs, whose division happens once, over all devices and steps;
8. scores that aren't finite change nothing but a counter; from the first gradient that isn't finite
   on, the update changes nothing more. Both count as one skipped PPO step.

The mathematics of each is in `ppo` and `losses`, and where references come from in `curriculum`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data.vocabularies.base import PAD_ID
from pit_jax.method import flops, ppo
from pit_jax.method.decode import Generation
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.forward import response_log_probs, response_scores, response_values
from pit_jax.method.frozen import Frozen
from pit_jax.method.losses import ppo_policy_loss, ppo_value_loss
from pit_jax.method.parts import in_parts, orders
from pit_jax.method.ppo import Experience, PPOConfig
from pit_jax.method.rollouts import Translated, make_answer, read_of
from pit_jax.method.widths import affordable, by_length, fitted, ladder, lengths_of, mean_width
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.metrics import Metrics
from pit_jax.runtime.microbatches import accumulate
from pit_jax.runtime.partitioning import Partitioner, constrain_rows
from pit_jax.runtime.train_state import TrainState


class RLState(flax.struct.PyTreeNode):
    """Holds everything that a PPO step changes.

    Attributes:
      train: TrainState of {'actor', 'critic'}; of a model with adapters it has what is trained.
      beta: float32 [], weight of the KL penalty.
      moments: moments of the scores of all responses that ended, so far.
    """

    train: TrainState
    beta: jax.Array
    moments: ppo.Moments

    def split(self) -> tuple[Any, RLState]:
        """Returns the actor's parameters, which later stages start from, and all other state."""
        params = dict(self.train.params)
        actor = params.pop("actor")
        return actor, self.replace(train=self.train.replace(params=params))

    def join(self, model: Any) -> RLState:
        """Puts the actor's parameters into a state that `split` left without; its inverse."""
        params = {"actor": model, **self.train.params}
        return self.replace(train=self.train.replace(params=params))


def make_passes(
    networks: Networks, config: PPOConfig, environment: Environment
) -> tuple[Callable, Callable]:
    """Makes the two forward passes that collecting and updating share.

    Returns:
      log_probs(actor params, Experience) -> log_probs_BR, entropy_BR; and
      values(critic params, Experience) -> values_BR.
    """
    actor, critic = LanguageModel(networks.actor), ScalarModel(networks.critic)
    # A critic that starts as the reward model at the last token estimates scores without anchor.
    starts_as_score = config.critic_start == "reward" and environment.pooling == "last"
    offset = environment.anchor if starts_as_score and not config.subtract_chosen else 0.0

    # Rematerialised, so that the update's forward pass keeps nothing for its backward pass: only
    # then does it compile to the arithmetic of a forward pass, and the first ratio is exactly 1.
    @partial(jax.checkpoint, static_argnums=(2,))
    def log_probs_at(params, episodes: Experience, width: int):
        return response_log_probs(
            actor,
            params,
            episodes.prompt_BP,
            episodes.response_BR,
            episodes.mask_BR,
            config.temperature,
            environment.allowed_V,
            width,
        )

    def values_at(params, episodes: Experience, width: int):
        rows = episodes.critic_prompt_BQ, episodes.response_BR, episodes.mask_BR
        values_BR = response_values(critic, params, *rows, width=width)
        return jnp.where(episodes.mask_BR > 0, values_BR - offset, 0.0)

    def fitting(function, params, episodes: Experience, prompts):
        widths = ladder(prompts.shape[1] + episodes.mask_BR.shape[1] - 1, config.widths)
        if len(widths) == 1:
            return function(params, episodes, widths[0])
        lengths_B = lengths_of(prompts, episodes.mask_BR) - 1
        return fitted(function, widths, params, episodes, lengths_B)

    def log_probs(params, episodes: Experience):
        return fitting(log_probs_at, params, episodes, episodes.prompt_BP)

    def values(params, episodes: Experience):
        return fitting(values_at, params, episodes, episodes.critic_prompt_BQ)

    return log_probs, values


# --- Collecting episodes -------------------------------------------------------------------------


def make_sample(networks: Networks, config: PPOConfig, environment: Environment) -> Callable:
    """Makes what samples a response to each prompt: (actor params, batch, key) -> Generation."""
    answer = make_answer(networks.actor, environment, config.temperature)

    def sample(params, batch, key):
        prompt_BP = batch["prompt_tokens"]
        return answer(params, prompt_BP, jnp.arange(len(prompt_BP)), key)

    return sample


def make_collect(networks: Networks, config: PPOConfig, environment: Environment) -> Callable:
    """Makes the first half of a PPO step, which collects episodes for prompts.

    Args:
      networks: the networks of all models.
      config: PPO's settings.
      environment: how episodes end and score.

    Returns:
      collect(state, frozen, batch, key, update_key) -> Experience, new beta, new moments, metrics,
      Generation. `frozen` is a Frozen; `batch` is a batch of RL prompts. Where the reward model's
      vocabulary isn't the actor's, the batch also has what `rollouts.Translated` adds. `update_key`
      is the update's.
    """
    log_probs, values = make_passes(networks, config, environment)
    sample, reward_model = make_sample(networks, config, environment), ScalarModel(networks.reward)

    def score_at(params, rows, width):
        prompt_BQ, response_BR, mask_BR = rows
        given = prompt_BQ, response_BR, mask_BR, environment.pooling
        return response_scores(reward_model, params, *given, width=width)

    def score(frozen, batch, response_BR, mask_BR):
        prompt_BQ, params = batch["reward_prompt_tokens"], frozen.model("reward")
        widths = ladder(prompt_BQ.shape[1] + mask_BR.shape[1], config.widths)

        def part(rows):
            return fitted(score_at, widths, params, rows, lengths_of(rows[0], rows[2]))

        rows = prompt_BQ, response_BR, mask_BR
        return in_parts(part, rows, config, by_length(prompt_BQ, mask_BR))

    def score_of(name, frozen, batch):
        tokens_BR = batch[f"{name}_tokens"]
        return score(frozen, batch, tokens_BR, tokens_BR != PAD_ID)

    def collect(state: RLState, frozen: Frozen, batch, key, update_key):
        params = {role: frozen.model(role, own) for role, own in state.train.params.items()}
        prompt_BP, reward_prompt_BQ = batch["prompt_tokens"], batch["reward_prompt_tokens"]
        critic_prompt_BQ = batch.get("critic_prompt_tokens", reward_prompt_BQ)
        B, P = prompt_BP.shape
        generation = batch.get("generation")
        if generation is None:
            generation = sample(params["actor"], batch, key)
        response_BR, mask_BR = generation.tokens_BR, generation.mask_BR.astype(jnp.float32)
        bare = Experience(prompt_BP, critic_prompt_BQ, response_BR, mask_BR, *([mask_BR] * 3))
        # In the parts of the update's first epoch, whose widths are then the same.
        order_B = orders(bare, update_key, config)[0].reshape(-1)

        def over(function):
            return in_parts(function, bare, config, order_B)

        log_probs_BR = over(lambda part: log_probs(params["actor"], part)[0])
        values_BR = over(lambda part: values(params["critic"], part))
        reference = frozen.model("reference")
        ref_log_probs_BR = over(lambda part: log_probs(reference, part)[0])

        read, ends_BR = read_of(batch, generation, environment)
        reference_B = score_of("reference", frozen, batch) if environment.difference else 0.0
        raw_B = score(frozen, batch, *read) - reference_B
        zero_B = jnp.full(B, environment.anchor)
        if config.subtract_chosen:
            zero_B = score_of("chosen", frozen, batch) - reference_B
        ended_B = jnp.any(ends_BR, axis=1)
        scores_B, moments = ppo.shape_scores(raw_B - zero_B, ended_B, state.moments, config)
        k1_BR, k3_BR = ppo.kl_estimates(log_probs_BR, ref_log_probs_BR)
        finite = jnp.isfinite(jnp.sum(raw_B) + jnp.sum(k1_BR) + jnp.sum(values_BR))
        moments = jax.tree.map(partial(jnp.where, finite), moments, state.moments)
        rewards_BR = ppo.token_rewards(k1_BR, scores_B, mask_BR, state.beta)
        computed = {"log_probs_BR": log_probs_BR, "values_BR": values_BR, "rewards_BR": rewards_BR}
        experience = bare.replace(**computed)
        beta = ppo.adapt_beta(state.beta, jnp.sum(k1_BR * mask_BR) / B, config, B)
        beta = jnp.where(finite, beta, state.beta)

        rows = jnp.float32(B)
        real = jnp.sum(mask_BR) + jnp.sum((prompt_BP != PAD_ID).astype(jnp.float32))
        metrics: Metrics = {
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
        # Decoding ends with the longest response.
        written = jnp.sum(jnp.any(generation.mask_BR, axis=0).astype(jnp.float32))
        shape = B, P, critic_prompt_BQ.shape[1], environment.response_length, config
        widths = (
            mean_width(prompt_BP, mask_BR, order_B, config),
            mean_width(critic_prompt_BQ, mask_BR, order_B, config),
            mean_width(reward_prompt_BQ, read[1], by_length(reward_prompt_BQ, read[1]), config),
        )
        works = flops.ppo_collect(*shape, written, environment.difference, widths)
        actor, critic = flops.ppo_update(*shape, widths)
        metrics["model_flops"] = (
            flops.total((*works[:-2], actor), networks.actor)
            + flops.total((works[-2], critic), networks.critic)
            + flops.total(works[-1:], networks.reward),
            1.0,
        )
        return experience, beta, moments, metrics, generation

    return collect


# --- The update ----------------------------------------------------------------------------------


def update(
    state: TrainState,
    experience: Experience,
    key: jax.Array,
    config: PPOConfig,
    log_probs: Callable,
    values: Callable,
) -> tuple[TrainState, Metrics]:
    """Does the second half of a PPO step: `epochs` passes over `minibatches` parts of the episodes.

    Args:
      state: TrainState with params {'actor', 'critic'}.
      experience: the episodes.
      key: what the episodes are shuffled with, anew for each epoch.
      config: PPO's settings.
      log_probs: (actor params, Experience) -> log_probs_BR, entropy_BR; it has to be the function
        that computed `experience.log_probs_BR`.
      values: (critic params, Experience) -> values_BR.

    Returns:
      the new state and metrics as (sum, weight) pairs, `first_ratio_error` among them: the largest
      distance from 1 of the first minibatch's ratios.

    Raises:
      ValueError: if the episodes can't be cut into minibatches x microbatches equal parts.
    """
    mask_BR = experience.mask_BR
    B = mask_BR.shape[0]
    if B % config.parts:
        raise ValueError(
            f"PPO: got a batch of {B} episodes, expected a multiple of minibatches x microbatches ="
            f" {config.parts}"
        )
    advantages_BR, returns_BR = ppo.gae(
        experience.rewards_BR, experience.values_BR, mask_BR, config.gamma, config.gae_lambda
    )
    data = (experience, ppo.whiten(advantages_BR, mask_BR), returns_BR)
    skipped, in_row = state.skipped, state.skipped_in_row

    def minibatch_step(state: TrainState, batch):
        weight = jnp.sum(batch[0].mask_BR)

        def gradients(part):
            def total(params):
                return loss(params, part, weight, config, log_probs, values)

            gradient = jax.value_and_grad(total, has_aux=True)
            (value, (metrics, deviation)), grads = gradient(state.params)
            return (grads, value, metrics), deviation

        (grads, value, metrics), deviations = accumulate(gradients, batch, config.microbatches)
        value = jnp.where(state.skipped == skipped, value, jnp.nan)  # none after a bad one
        state, step_metrics = state.apply_gradients(grads, value)
        return state, ({**metrics, **step_metrics}, jnp.max(deviations))

    def epoch(state: TrainState, order_NB):
        return jax.lax.scan(minibatch_step, state, jax.tree.map(lambda x: x[order_NB], data))

    drawn = jnp.stack(orders(experience, key, config))
    state, (metrics, deviation) = jax.lax.scan(epoch, state, drawn)
    metrics = jax.tree.map(jnp.sum, metrics)
    bad = (state.skipped > skipped).astype(jnp.int32)
    state = state.replace(skipped=skipped + bad, skipped_in_row=(in_row + 1) * bad)
    explained = ppo.explained_variance(experience.values_BR, returns_BR, mask_BR)
    one = jnp.float32(1)
    return state, {
        **metrics,
        "skipped_steps": (bad.astype(jnp.float32), one),
        "explained_variance": (explained, one),
        "first_ratio_error": (deviation[0, 0], one),
    }


def loss(params, part, weight, config: PPOConfig, log_probs: Callable, values: Callable):
    """Computes PPO's loss of a part of a minibatch.

    Args:
      params: {'actor', 'critic'}.
      part: (Experience, advantages_BR, returns_BR).
      weight: number of tokens of the whole minibatch, which the sums are divided by.
      config, log_probs, values: as for `update`.

    Returns:
      the loss, and the metrics with the largest distance of a ratio from 1.
    """
    episodes, advantages_BR, returns_BR = part
    mask_BR = episodes.mask_BR
    log_probs_BR, entropy_BR = log_probs(params["actor"], episodes)
    values_BR = values(params["critic"], episodes)
    (policy, count), policy_metrics = ppo_policy_loss(
        log_probs_BR, episodes.log_probs_BR, advantages_BR, mask_BR, config.clip
    )
    (value, _), value_metrics = ppo_value_loss(
        values_BR, episodes.values_BR, returns_BR, mask_BR, config.value_clip
    )
    metrics = {
        **policy_metrics,
        **value_metrics,
        "policy_loss": (policy, count),
        "value_loss": (value, count),
        "entropy": (jnp.sum(entropy_BR * mask_BR), count),
    }
    deviation = jnp.max(jnp.abs(jnp.exp((log_probs_BR - episodes.log_probs_BR) * mask_BR) - 1))
    total = (policy + config.value_coefficient * value) / jnp.maximum(weight, 1)
    return total, (metrics, deviation)


# --- The step ------------------------------------------------------------------------------------


def make_programs(
    networks: Networks, config: PPOConfig, environment: Environment, partitioner: Partitioner
) -> tuple[Callable, Callable]:
    """Makes the two jitted programs of a PPO step on a mesh.

    Returns:
      `collect` of `make_collect`, whose metric `model_flops` counts both programs; and
      `update(state, Frozen.of_trained, episodes, key)` -> new state, metrics, donating the state.
    """
    config = affordable(config, networks.actor, networks.critic)
    collect = make_collect(networks, config, environment)
    log_probs, values = make_passes(networks, config, environment)

    # The state's parameters aren't among its results, which would be a copy of them.
    def collect_episodes(state: RLState, frozen: Frozen, batch, key, update_key):
        *results, generation = collect(state, frozen, batch, key, update_key)
        return *results, constrain_rows(generation)

    def update_state(state: RLState, frozen: Frozen, experience: Experience, key):
        passes = frozen.of_own("actor", log_probs), frozen.of_own("critic", values)
        train, metrics = update(state.train, experience, key, config, *passes)
        return state.replace(train=train), metrics

    return partitioner.jit(collect_episodes), partitioner.jit(update_state, donate_argnums=0)


def make_step(
    networks: Networks,
    config: PPOConfig,
    environment: Environment,
    partitioner: Partitioner,
    frozen: Callable[[jax.Array], Frozen],
    key: jax.Array,
    decode: Callable[[Any], str],
    translate: Callable[[Generation], dict[str, np.ndarray]] | None = None,
) -> Callable[[RLState, Any, int], tuple[RLState, Metrics, Callable[[], dict[str, str]]]]:
    """Makes a PPO step for `loop.fit`, which collects episodes and then updates on them.

    Args:
      networks: the networks of all models.
      config: PPO's settings.
      environment: how episodes end and score.
      partitioner: what puts the programs on devices.
      frozen: gives the models that aren't trained; its argument is ready once the last update
        doesn't need the memory any more.
      key: base key of the stage; step i uses fold_in(key, i).
      decode: makes text of ids, for the samples that are logged.
      translate: see `rollouts.Translated`.
    """
    collect, update = make_programs(networks, config, environment, partitioner)
    translated = Translated(make_sample(networks, config, environment), translate, partitioner)

    def step(state: RLState, batch, number: int):
        rollout_key, update_key = jax.random.split(jax.random.fold_in(key, number))
        models = frozen(state.train.step)
        placed = partitioner.shard_batch(batch)
        actor = models.model("actor", state.train.params["actor"])
        placed = translated(actor, placed, rollout_key)
        keys = rollout_key, update_key
        experience, beta, moments, metrics, generation = collect(state, models, placed, *keys)
        models = models.of_trained  # others that wait on the hosts leave the devices
        state = state.replace(beta=beta, moments=moments)
        state, update_metrics = update(state, models, experience, update_key)
        return state, {**metrics, **update_metrics}, lambda: texts(batch, generation)

    def texts(batch, generation: Generation) -> dict[str, str]:
        """Returns the first episodes that this process holds, for people to read."""
        shard = generation.tokens_BR.addressable_shards[0]
        first, responses = shard.index[0].start or 0, jax.device_get(shard.data)
        prompts = batch["prompt_tokens"]
        return {
            f"sample_{i}": f"{decode(prompts[first + i])} → {decode(responses[i])}"
            for i in range(min(3, len(responses)))
        }

    return step
